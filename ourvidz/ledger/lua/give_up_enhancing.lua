local id, run, wording = unpack(ARGV, 4)
local job = record(id)
if not job or job.run ~= run then return 0 end
if job.enhancement == 'over' then return job.wording == wording and 1 or 0 end
if not wants_words(job, run) then return 0 end
stop_enhancing(id, job, wording)
return 1

local id, run, token, wording = unpack(ARGV, 4)
local job = record(id)
if not job or job.run ~= run then return 0 end
if job.enhancement == 'over' then return job.wording == wording and 1 or 0 end
if not wants_words(job, run) or job.enhancer ~= token then return 0 end
stop_enhancing(id, job, wording)
-- The generation's own message follows: to the sweep it is as fresh as a first one.
if job.published_at then redis.call('HSET', key('job', id), 'published_at', stamp(now)) end
return 1

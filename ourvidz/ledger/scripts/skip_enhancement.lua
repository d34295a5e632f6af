-- End the wait for an enhancement, regardless of its lease holder: the job is generated without one.
-- Arguments: id, run, result (JSON with the reason).
-- Keys: job, stream.
-- Returns: 1, or 0 when the job does not await an enhancement or ended it with another result.
-- Events: a `state` item when the stage is cleared.
local id, run, result = unpack(ARGV, 4)

local job = read_record(id)
if not job or job.run ~= run then return 0 end
if job.enhancement == 'over' then return job.wording == result and 1 or 0 end
if not awaits_enhancement(job, run) then return 0 end
close_enhancement(id, job, result)
return 1

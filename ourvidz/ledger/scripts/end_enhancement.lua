-- Store the result of an enhancement. The same result sent twice changes nothing the second time.
-- Arguments: id, run, token, result (JSON).
-- Keys: job, stream.
-- Returns: 1, or 0 when the lease is another one's or the enhancement ended with another result.
-- Events: a `state` item when the stage is cleared.
local id, run, token, result = unpack(ARGV, 4)

local job = read_record(id)
if not job or job.run ~= run then return 0 end
if job.enhancement == 'over' then return job.wording == result and 1 or 0 end
if not awaits_enhancement(job, run) or job.enhancer ~= token then return 0 end
close_enhancement(id, job, result)
-- The generation's own message follows: to the sweep it is as fresh as a first one.
if job.published_at then redis.call('HSET', key('job', id), 'published_at', timestamp(now)) end
return 1

-- Note that the message of a run was handed to the broker: `published_at`, `publishes` + 1.
-- Arguments: id, run, token.
-- Keys: job, call.
-- Returns: 1, or 0 when the job is gone or another run's, or the call came twice.
-- Events: none.
local id, run, token = unpack(ARGV, 4)

local job = read_record(id)
if not job or job.run ~= run or memoized(token) then return 0 end
redis.call('HSET', key('job', id), 'published_at', timestamp(now))
redis.call('HINCRBY', key('job', id), 'publishes', 1)
memoize(token, 'ok')
return 1

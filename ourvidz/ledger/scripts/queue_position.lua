-- Find the place of a job in its queue.
-- Arguments: id.
-- Keys: job, queued.
-- Returns: 0 for the next to start; nil when the job is not queued.
-- Events: none.
local id = unpack(ARGV, 4)

local queue = redis.call('HGET', key('job', id), 'queue')
return queue and redis.call('ZRANK', key('queued', queue), id)

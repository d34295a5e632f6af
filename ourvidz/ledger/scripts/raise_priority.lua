-- Give a queued job a more urgent priority, once a run; its order stays.
-- Arguments: id, run, priority, token.
-- Keys: job, queued, call.
-- Returns: 1, or 0 when the job is not queued in this run, was raised before, or is as urgent.
-- Events: none.
local id, run, priority, token = unpack(ARGV, 4)

local job = read_record(id)
if memoized(token) then return 1 end
if not job or job.run ~= run or job.status ~= 'queued' or job.lifted then return 0 end
if tonumber(priority) >= tonumber(job.priority) then return 0 end
redis.call('HSET', key('job', id), 'priority', priority, 'lifted', 1)
redis.call('ZADD', key('queued', job.queue), queue_score(priority, job.order), id)
memoize(token, 'ok')
return 1

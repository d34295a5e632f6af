-- Read the workers that were seen lately, and the paused queues.
-- Arguments: within_s.
-- Keys: workers, worker, paused.
-- Returns: { now, the paused queues, the hash of each worker }.
-- Events: none.
local within_s = unpack(ARGV, 4)

local ids = redis.call('ZRANGEBYSCORE', key('workers'), timestamp(now - tonumber(within_s)), '+inf')
local answer = { timestamp(now), redis.call('SMEMBERS', key('paused')) }
for _, id in ipairs(ids) do answer[#answer + 1] = redis.call('HGETALL', key('worker', id)) end
return answer

-- Note whether the broker holds no message of a queue.
-- Arguments: queue, empty ('1' or '0').
-- Keys: empty.
-- Returns: the time since when it has been empty; false while it is not.
-- Events: none.
local queue, empty = unpack(ARGV, 4)

if empty == '0' then
  redis.call('HDEL', key('empty'), queue)
  return false
end
redis.call('HSETNX', key('empty'), queue, timestamp(now))
return redis.call('HGET', key('empty'), queue)

local queue, empty = unpack(ARGV, 4)
if empty == '0' then
  redis.call('HDEL', key('empty'), queue)
  return false
end
redis.call('HSETNX', key('empty'), queue, stamp(now))
return redis.call('HGET', key('empty'), queue)

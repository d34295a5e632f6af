local id, queue, data, keep_s = unpack(ARGV, 4)
local name = key('worker', id)
redis.call('HSET', name, 'data', data, 'seen_at', stamp(now))
redis.call('HDEL', name, 'left')
redis.call('EXPIRE', name, keep_s)
redis.call('ZADD', key('workers'), stamp(now), id)
redis.call('ZREMRANGEBYSCORE', key('workers'), '-inf', '(' .. stamp(now - tonumber(keep_s)))
redis.call('HSET', key('queue_seen'), queue, stamp(now))
return 1

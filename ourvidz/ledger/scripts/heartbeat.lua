-- Record a worker as it is now, seen now.
-- Arguments: id, queue, data (JSON), keep_s (workers silent for longer are deleted), loading ('1': the worker has
--   not loaded its models yet, its queue counts as unseen), failed ('1': it could not load them, it claims nothing).
-- Keys: worker, workers, queue_seen.
-- Returns: 1.
-- Events: none.
local id, queue, data, keep_s, loading, failed = unpack(ARGV, 4)

local name = key('worker', id)
redis.call('HSET', name, 'data', data, 'seen_at', timestamp(now))
redis.call('HDEL', name, 'left')
redis.call('EXPIRE', name, keep_s)
redis.call('ZADD', key('workers'), timestamp(now), id)
redis.call('ZREMRANGEBYSCORE', key('workers'), '-inf', '(' .. timestamp(now - tonumber(keep_s)))
if failed == '1' then
  redis.call('HSET', name, 'failed', 1)
else
  redis.call('HDEL', name, 'failed')
end
if loading ~= '1' then redis.call('HSET', key('queue_seen'), queue, timestamp(now)) end
return 1

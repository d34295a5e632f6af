-- Make a dead or delivered event pending again, due now, its deliveries counted from 0.
-- Arguments: event.
-- Keys: event, rows, letters, due.
-- Returns: the event's hash, or false when there is none.
-- Events: none.
local event = unpack(ARGV, 4)

local name = key('event', event)
local row = read_hash(name)
if not row then return false end
if row.state ~= 'pending' then
  -- One delivery of a job at a time: wait for the event that is leased now.
  local head, due = redis.call('ZRANGE', key('rows', row.job), 0, 0)[1], now
  if head then due = math.max(now, tonumber(redis.call('HGET', key('event', head), 'lease_until') or 0)) end
  redis.call('ZREM', key('letters', row.state), event)
  redis.call('ZADD', key('letters', 'pending'), timestamp(now), event)
  redis.call('PERSIST', name)
  redis.call('HSET', name, 'state', 'pending', 'due_at', timestamp(due), 'deliveries', 0)
  redis.call('HDEL', name, 'settled_at')
  redis.call('ZADD', key('rows', row.job), row.seq, event)
  schedule_job(row.job)
end
return redis.call('HGETALL', name)

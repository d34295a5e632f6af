-- Lease the oldest pending event of a job for one delivery, if it is due and not leased: deliveries + 1.
-- Arguments: id, lease_s, token (the same token gets the same lease again).
-- Keys: rows, event, due.
-- Returns: { event id, its hash }, or false.
-- Events: none.
local id, lease_s, token = unpack(ARGV, 4)

local event = oldest_event(id)
if not event then
  redis.call('ZREM', key('due'), id)
  return false
end
local name = key('event', event)
local row = read_hash(name)
if row.taken_by == token then return { event, redis.call('HGETALL', name) } end
if tonumber(row.due_at) > now or tonumber(row.lease_until or 0) > now then return false end
redis.call('HSET', name, 'lease_until', timestamp(now + tonumber(lease_s)), 'taken_by', token)
redis.call('HINCRBY', name, 'deliveries', 1)
schedule_job(id)
return { event, redis.call('HGETALL', name) }

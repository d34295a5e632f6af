-- Read the oldest pending event of a job, due or not.
-- Arguments: id.
-- Keys: rows, event, due.
-- Returns: { event id, its hash }, or false when nothing is pending.
-- Events: none.
local id = unpack(ARGV, 4)

local event = oldest_event(id)
if not event then
  redis.call('ZREM', key('due'), id)
  return false
end
return { event, redis.call('HGETALL', key('event', event)) }

-- Read the oldest pending event of a job, due or not.
-- Arguments: id.
-- Keys: rows, event.
-- Returns: { event id, its hash }, or false when nothing is pending.
-- Events: none.
local id = unpack(ARGV, 4)

local event = redis.call('ZRANGE', key('rows', id), 0, 0)[1]
return event and { event, redis.call('HGETALL', key('event', event)) }

-- The memory of a device: its residents, and who waits.
-- Arguments: device.
-- Keys: residents, memory_waits, device.
-- Returns: now, residents (id, JSON, ...), waits (owner, JSON, ...), measurement ('' for none), its time.
-- Events: none.
local device = unpack(ARGV, 4)

local measured = redis.call('HMGET', key('device', device), 'measured', 'measured_at')
return { timestamp(now), redis.call('HGETALL', key('residents', device)),
  redis.call('HGETALL', key('memory_waits', device)), measured[1] or '', measured[2] or '' }

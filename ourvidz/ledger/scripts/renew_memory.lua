-- Extend the leases of all parts of an owner, and note what it has measured.
-- Arguments: device, owner, lease_s, measurement (JSON).
-- Keys: residents, memory_waits, device, devices.
-- Returns: what `device_memory` returns.
-- Events: none.
local device, owner, lease_s, measurement = unpack(ARGV, 4)

for part, row in pairs(read_residents(device)) do
  if row.owner == owner then
    row.lease_until = now + tonumber(lease_s)
    write_resident(device, part, row)
  end
end
live_waits(device)
redis.call('SADD', key('devices'), device)
redis.call('HSET', key('device', device), 'measured', measurement, 'measured_at', timestamp(now))
return { timestamp(now), redis.call('HGETALL', key('residents', device)), redis.call('HGETALL', key('memory_waits', device)) }

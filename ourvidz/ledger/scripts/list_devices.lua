-- The devices whose memory was granted, without those of which nobody has spoken for an hour: their hosts are gone,
-- and what is known of them is deleted. A worker that comes back tells what it holds.
-- Arguments: none.
-- Keys: devices, device, residents, memory_waits.
-- Returns: the devices.
-- Events: none.
local FORGOTTEN_S = 3600

local known = {}
for _, device in ipairs(redis.call('SMEMBERS', key('devices'))) do
  local seen = tonumber(redis.call('HGET', key('device', device), 'measured_at')) or 0
  for _, row in pairs(read_residents(device)) do seen = math.max(seen, row.lease_until) end
  if now - seen > FORGOTTEN_S then
    redis.call('SREM', key('devices'), device)
    redis.call('DEL', key('device', device), key('residents', device), key('memory_waits', device))
  else
    known[#known + 1] = device
  end
end
return known

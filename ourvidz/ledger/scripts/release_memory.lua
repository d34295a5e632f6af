-- Delete the parts and the wait of an owner: its process has ended, or holds none of its parts any more.
-- Arguments: device, owner.
-- Keys: residents, memory_waits.
-- Returns: the number of parts that were deleted.
-- Events: none.
local device, owner = unpack(ARGV, 4)

local released = 0
for part, row in pairs(read_residents(device)) do
  if row.owner == owner then released = released + redis.call('HDEL', key('residents', device), part) end
end
redis.call('HDEL', key('memory_waits', device), owner)
return released

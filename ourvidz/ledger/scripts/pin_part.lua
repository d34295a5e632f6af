-- Pin a part on every device, or not, whatever its owner's settings say.
-- Arguments: part, pinned ('1' or '0').
-- Keys: pinned, devices, residents.
-- Returns: the number of devices on which it resides.
-- Events: none.
local part, pinned = unpack(ARGV, 4)

redis.call('HSET', key('pinned'), part, pinned)
local found = 0
for _, device in ipairs(redis.call('SMEMBERS', key('devices'))) do
  local row = read_residents(device)[part]
  if row then
    row.pinned = pinned == '1'
    write_resident(device, part, row)
    found = found + 1
  end
end
return found

-- Pin a model on every device, or not, whatever its owners' settings say.
-- Arguments: model, pinned ('1' or '0').
-- Keys: pinned, devices, residents.
-- Returns: how many workers hold it.
-- Events: none.
local model, pinned = unpack(ARGV, 4)

redis.call('HSET', key('pinned'), model, pinned)
local found = 0
for _, device in ipairs(redis.call('SMEMBERS', key('devices'))) do
  for part, row in pairs(read_residents(device)) do
    if model_of(part) == model then
      row.pinned = pinned == '1'
      write_resident(device, part, row)
      found = found + 1
    end
  end
end
return found

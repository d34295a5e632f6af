-- After a job, or after a wait that was given up: no part of the owner is busy any more, what the job needed beside
--   the weights is released, and the owner waits for nothing.
-- Arguments: device, owner.
-- Keys: residents, memory_waits.
-- Returns: the number of parts that remain.
-- Events: none.
local device, owner = unpack(ARGV, 4)

redis.call('HDEL', key('memory_waits', device), owner)
local remaining = 0
for part, row in pairs(read_residents(device)) do
  if row.owner == owner then
    if row.work then
      redis.call('HDEL', key('residents', device), part)
    else
      remaining = remaining + 1
      if row.busy then
        row.busy, row.used_at = false, now
        write_resident(device, part, row)
      end
    end
  end
end
return remaining

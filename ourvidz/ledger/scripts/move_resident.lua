-- Change the state of a part of an owner; the owner has done it, or is about to (`loading`, `evicting`).
-- Arguments: device, owner, part, state ('absent' deletes the part), mib, busy ('1' or '0'), host_budget_mib (for
--   'evicting': memory of the host that parts may sleep in).
-- Keys: residents.
-- Returns: 0 when the part is not the owner's; 1; for 'evicting' 2 when the part may sleep in the host's memory.
-- Events: none.
local device, owner, part, state, mib, busy, host_budget_mib = unpack(ARGV, 4)

local residents = read_residents(device)
local row = residents[part]
if not row or row.owner ~= owner then return 0 end
if state == 'absent' then
  redis.call('HDEL', key('residents', device), part)
  return 1
end
local answer = 1
if state == 'evicting' then
  local sleeping = 0
  for id, other in pairs(residents) do
    if id ~= part and other.host_mib then sleeping = sleeping + other.host_mib end
  end
  row.host_mib = nil
  if sleeping + row.mib <= tonumber(host_budget_mib) then
    row.host_mib = row.mib
    answer = 2
  end
elseif state == 'asleep' then
  -- A part that could not be woken sleeps again: the grant has replaced its row.
  row.host_mib = row.host_mib or tonumber(mib)
else
  row.host_mib = nil
end
if row.state ~= state then row.since = now end
row.state, row.mib, row.busy, row.used_at = state, tonumber(mib), busy == '1', now
write_resident(device, part, row)
return answer

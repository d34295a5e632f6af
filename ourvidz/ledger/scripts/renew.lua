-- Extend the lease of a claim to now + lease_s.
-- Arguments: id, run, fence, lease_s.
-- Keys: job, leases.
-- Returns: 1, or 0 when the fence is lost.
-- Events: none.
local id, run, fence, lease_s = unpack(ARGV, 4)

if not holds_claim(read_record(id), run, fence) then return 0 end
set_lease(id, timestamp(now + tonumber(lease_s)))
return 1

-- Extend the lease of a claim to now + lease_s.
-- Arguments: id, run, fence, token, lease_s.
-- Keys: job, leases.
-- Returns: 1, or 0 when the claim is lost.
-- Events: none.
local id, run, fence, token, lease_s = unpack(ARGV, 4)

if not holds_claim(read_record(id), run, fence, token) then return 0 end
set_lease(id, timestamp(now + tonumber(lease_s)))
return 1

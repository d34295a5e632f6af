-- Extend every lease to now + lease_s.
-- Arguments: lease_s.
-- Keys: leases, job.
-- Returns: the number of leases. One without a record is removed.
-- Events: none.
local lease_s = unpack(ARGV, 4)

local lease_until = timestamp(now + tonumber(lease_s))
local extended = 0
for _, id in ipairs(redis.call('ZRANGE', key('leases'), 0, -1)) do
  if redis.call('EXISTS', key('job', id)) == 1 then
    set_lease(id, lease_until)
    extended = extended + 1
  else
    redis.call('ZREM', key('leases'), id)
  end
end
return extended

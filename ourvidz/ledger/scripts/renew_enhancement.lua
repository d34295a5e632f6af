-- Extend the lease of an enhancement to now + lease_s.
-- Arguments: id, run, token, lease_s.
-- Keys: job.
-- Returns: 'continue', 'cancel' when the caller asked for it, or 'lost' when the lease is another one's or the
--   enhancement is over.
-- Events: none.
local id, run, token, lease_s = unpack(ARGV, 4)

local job = read_record(id)
if not awaits_enhancement(job, run) or job.enhancer ~= token then return 'lost' end
redis.call('HSET', key('job', id), 'enhancing_until', timestamp(now + tonumber(lease_s)))
return job.cancel and 'cancel' or 'continue'

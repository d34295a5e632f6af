local id, run, token, lease_s = unpack(ARGV, 4)
local job = record(id)
if not wants_words(job, run) or job.enhancer ~= token then return 'lost' end
redis.call('HSET', key('job', id), 'enhancing_until', stamp(now + tonumber(lease_s)))
return job.cancel and 'cancel' or 'continue'

local id, run, lease_s, token = unpack(ARGV, 4)
local job = record(id)
if not wants_words(job, run) or job.cancel then return false end
if job.enhancer ~= token and tonumber(job.enhancing_until or 0) > now then return false end
local name, document = key('job', id), redis.call('GET', key('doc', id))
if not document then return false end
redis.call('HSET', name, 'enhancer', token, 'enhancing_until', stamp(now + tonumber(lease_s)), 'stage', 'enhancing')
if job.stage ~= 'enhancing' then
  job.stage = 'enhancing'
  state_item(id, job, 'queued', job.attempt)
end
return { flat(id), document }

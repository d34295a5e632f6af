local id = ARGV[4]
local job = record(id)
if not job then return { 'missing' } end
if job.status ~= 'queued' and job.status ~= 'processing' then return { job.status } end
redis.call('HSET', key('job', id), 'cancel', 1)
return { 'ok', flat(id) }

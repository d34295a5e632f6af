local id, token = unpack(ARGV, 4)
local gone = said_before(token)
if gone then return { 'ok', cjson.decode(gone) } end
local job = record(id)
if not job then return { 'missing' } end
if job.status == 'queued' or job.status == 'processing' then return { job.status } end
if redis.call('ZCARD', key('rows', id)) > 0 then return { 'callback' } end
local fields = flat(id)
forget(id, job)
say(token, cjson.encode(fields))
return { 'ok', fields }

-- Mark an ended job whose callbacks are settled as being deleted: it is not run again, and stays until its files are
-- gone and `delete` follows. A second time it changes nothing.
-- Arguments: id.
-- Keys: job, doc, deleting, documents, rows.
-- Returns: { 'ok', the record }, or { the reason }: 'missing', 'callback' (one is pending) or the status that forbids
--   it.
-- Events: none.
local id = unpack(ARGV, 4)

local job = read_record(id)
if not job then return { 'missing' } end
if not job.deleting then
  if job.status == 'queued' or job.status == 'processing' then return { job.status } end
  if redis.call('ZCARD', key('rows', id)) > 0 then return { 'callback' } end
  redis.call('HSET', key('job', id), 'deleting', timestamp(now))
  redis.call('ZADD', key('deleting'), timestamp(now), id)
  -- A deletion that is interrupted goes on, however late: record and document name the files.
  for _, kind in ipairs({ 'job', 'doc' }) do redis.call('PERSIST', key(kind, id)) end
  redis.call('ZREM', key('documents'), id)
end
return { 'ok', flat_record(id) }

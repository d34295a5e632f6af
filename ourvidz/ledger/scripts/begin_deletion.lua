-- Mark an ended job whose callbacks are settled as being deleted: it is not run again, and stays until its files are
-- gone and `delete` follows. A second time it changes nothing.
-- Arguments: id, force ('1' cancels callbacks that are pending).
-- Keys: job, doc, deleting, documents, rows, due, and every event that is cancelled.
-- Returns: { 'ok', the record }, or { the reason }: 'missing', 'callback' (one is pending) or the status that forbids
--   it.
-- Events: none; with force, the pending ones are deleted.
local id, force = unpack(ARGV, 4)

local job = read_record(id)
if not job then return { 'missing' } end
-- Also of a job that is marked: the previous release runs such a job again.
if job.status == 'queued' or job.status == 'processing' then return { job.status } end
if not job.deleting then
  local pending = redis.call('ZRANGE', key('rows', id), 0, -1)
  if #pending > 0 and force ~= '1' then return { 'callback' } end
  for _, event in ipairs(pending) do delete_event(event) end
  redis.call('DEL', key('rows', id))
  redis.call('ZREM', key('due'), id)
  redis.call('HSET', key('job', id), 'deleting', timestamp(now))
  redis.call('ZADD', key('deleting'), timestamp(now), id)
  -- A deletion that is interrupted goes on, however late: record and document name the files.
  for _, kind in ipairs({ 'job', 'doc' }) do redis.call('PERSIST', key(kind, id)) end
  redis.call('ZREM', key('documents'), id)
end
return { 'ok', flat_record(id) }

-- End a run: the terminal status and its event in one transaction. The same outcome sent twice changes nothing
-- the second time.
-- Arguments: id, run, fence, token ('' for a queued job), status, outcome (JSON), fault (JSON of the public error),
--   worker, limit (bytes: a longer document is not kept), retry_window_s, keep_s, stream_s, if_expired ('1': a
--   processed job only when its lease has ended by now), result_key ('' for a result that answers no other job),
--   counters (the number of those to increment), usage (the number of fields of the GPU usage to add to), then a name and an amount for each of them, then the folders of the
--   attempt in which no file is left.
-- Keys: job, doc, stream, queued, leases, finished, documents, counters, gpu_usage, attempt_folders, result, and those of
--   add_event.
-- Returns: 1, or 0 when run, fence or token are others, the run has ended with another outcome, or
--   the lease has not ended.
-- Events: the terminal status; a `done` item.
local id, run, fence, token, status, outcome, fault, worker = unpack(ARGV, 4, 11)
local limit, retry_window_s, keep_s, stream_s, if_expired, result_key, counters, usage = unpack(ARGV, 12, 19)
local FIRST_COUNTER = 20
local FIRST_USAGE = FIRST_COUNTER + 2 * tonumber(counters)
local FIRST_FOLDER = FIRST_USAGE + 2 * tonumber(usage)

local job = read_record(id)
if not is_current(job, run, fence, token) then return 0 end
if job.status ~= 'queued' and job.status ~= 'processing' then return job.outcome == outcome and 1 or 0 end
if if_expired == '1' and job.status == 'processing' and not lease_ended(job) then return 0 end

local name, at = key('job', id), timestamp(now)
if worker ~= '' then job.worker = worker end
if job.worker then redis.call('HSET', name, 'worker', job.worker) end
if status == 'completed' then redis.call('HSET', name, 'progress', 100) end
redis.call('HSET', name, 'status', status, 'outcome', outcome, 'finished_at', at)
redis.call('HDEL', name, 'lease_until', 'step', 'stage', 'shared', 'preview', 'enhancer', 'enhancing_until')
redis.call('ZREM', key('queued', job.queue), id)
redis.call('ZREM', key('leases'), id)
redis.call('ZADD', key('finished'), at, id)
for i = FIRST_FOLDER, #ARGV do
  redis.call('ZREM', key('attempt_folders'), attempt_folder(id, token, ARGV[i]))
end

local event = add_event(id, job, status, outcome)
if event then redis.call('HSET', name, 'events', (job.events and job.events .. ' ' or '') .. event) end
if fault == '' then
  add_item(id, 'done', 'status', status, 'run', run)
else
  add_item(id, 'done', 'status', status, 'run', run, 'error', fault)
end
increment('jobs.' .. job.type .. '.' .. status)
for i = FIRST_COUNTER, FIRST_USAGE - 1, 2 do increment(ARGV[i], ARGV[i + 1]) end
if result_key ~= '' then
  redis.call('SET', key('result', result_key), id, 'EX', keep_s)
  redis.call('HSET', name, 'result', result_key)
end
add_gpu_usage(FIRST_USAGE, FIRST_FOLDER - 1)

local document, keep_document_s = key('doc', id), keep_s
if redis.call('STRLEN', document) > tonumber(limit) then
  if status == 'completed' then
    redis.call('DEL', document)
  else
    keep_document_s = retry_window_s
    redis.call('ZADD', key('documents'), timestamp(now + tonumber(retry_window_s)), id)
  end
end
redis.call('EXPIRE', name, keep_s)
redis.call('EXPIRE', document, keep_document_s)
end_stream(id, stream_s)
return 1

-- Compare what is stored of some jobs with itself, and mend it if asked to. Each job is read in one moment, so work
-- that goes on meanwhile is never taken for damage.
-- Arguments: repair ('1' mends), keep_s (records of ended jobs), stream_s, event_s (terminal events are kept at least),
--   queues (separated by spaces), then the ids.
-- Keys: every key of the jobs and their events, every index, order, fence.
-- Returns: { id, code, detail } for each finding. The detail `document` of a queued job is not mended here.
-- Events: a terminal event that is missing, if mended.
local repair, keep_s, stream_s, event_s, queues = unpack(ARGV, 4, 8)
local FIRST_ID = 9

local findings, status_indexes = {}, { 'leases', 'finished' }
for queue in string.gmatch(queues, '%S+') do status_indexes[#status_indexes + 1] = 'queued:' .. queue end

local function report(id, code, detail, mend)
  findings[#findings + 1] = { id, code, detail }
  if repair == '1' and mend then mend() end
end

local function remove_from(index, id) return function() redis.call('ZREM', key(index), id) end end
local function differ(one, other) return math.abs((tonumber(one) or 0) - (tonumber(other) or 0)) > 0.00001 end

-- The index that a record asks for, and its place there.
local function place(job)
  if job.status == 'queued' then return 'queued:' .. job.queue, queue_score(job.priority, job.order) end
  if job.status == 'processing' then return 'leases', job.lease_until end
  return 'finished', job.finished_at
end

local function check_events_of(id, quarantined)
  for _, event in ipairs(redis.call('ZRANGE', key('rows', id), 0, -1)) do
    if redis.call('EXISTS', key('event', event)) == 0 then
      report(id, 'dangling', 'its pending event ' .. event .. ' is gone', function()
        redis.call('ZREM', key('rows', id), event)
        schedule_job(id)
      end)
    end
  end
  local scheduled, head = redis.call('ZSCORE', key('due'), id), redis.call('ZRANGE', key('rows', id), 0, 0)[1]
  local times = head and redis.call('HMGET', key('event', head), 'due_at', 'lease_until')
  local mend = function() schedule_job(id) end
  if scheduled and not head then
    report(id, 'dangling', 'in due without a pending event', mend)
  elseif head and times[1] and not quarantined then
    local due = math.max(tonumber(times[1]) or 0, tonumber(times[2] or 0) or 0)
    if not scheduled then
      report(id, 'index', 'its pending event is not in due', mend)
    elseif differ(scheduled, due) then
      report(id, 'index', 'its pending event is in due at the wrong time', mend)
    end
  end
end

local function check_absent(id)
  for _, index in ipairs({ 'documents', 'index:all', unpack(status_indexes) }) do
    if redis.call('ZSCORE', key(index), id) then
      report(id, 'dangling', 'in ' .. index .. ' without a record', remove_from(index, id))
    end
  end
  if redis.call('ZSCORE', key('quarantine'), id) then
    report(id, 'dangling', 'in quarantine without a record', function()
      redis.call('ZREM', key('quarantine'), id)
      redis.call('HDEL', key('quarantine_reasons'), id)
    end)
  end
  if redis.call('EXISTS', key('doc', id)) == 1 then
    report(id, 'orphan', 'a job document without a record', function() redis.call('DEL', key('doc', id)) end)
  end
  if redis.call('TTL', key('stream', id)) == -1 then
    report(id, 'orphan', 'a stream without a record', function() redis.call('EXPIRE', key('stream', id), stream_s) end)
  end
  check_events_of(id, false)
end

local function check_indexes(id, job, quarantined)
  local index, score = place(job)
  local mend = function()
    for _, each in ipairs(status_indexes) do redis.call('ZREM', key(each), id) end
    index_job(id, job)
  end
  for _, each in ipairs(status_indexes) do
    local stored = redis.call('ZSCORE', key(each), id)
    if each ~= index and stored then
      report(id, 'index', 'in ' .. each .. ' although it is ' .. job.status, mend)
    elseif each == index and not stored and not quarantined then
      report(id, 'index', 'not in ' .. each .. ' although it is ' .. job.status, mend)
    elseif each == index and stored and differ(stored, score) then
      report(id, 'index', 'in the wrong place of ' .. each, mend)
    end
  end
  local lists = { 'index:all' }
  if job.user then lists[2] = 'index:user:' .. job.user end
  for position, list in ipairs(lists) do
    if not redis.call('ZSCORE', key(list), id) then
      report(id, 'index', position == 1 and 'not in index:all' or "not in its user's index", function()
        redis.call('ZADD', key(list), job.order, id)
      end)
    end
  end
end

local function check_lifetime(id, job, ended)
  local ttl = redis.call('TTL', key('job', id))
  if ended and ttl == -1 then
    report(id, 'lifetime', 'an ended job that never expires', function()
      redis.call('EXPIRE', key('job', id), keep_s)
      redis.call('EXPIRE', key('doc', id), keep_s)
      redis.call('EXPIRE', key('stream', id), stream_s)
    end)
  elseif not ended and (ttl >= 0 or redis.call('TTL', key('doc', id)) >= 0) then
    report(id, 'lifetime', 'a ' .. job.status .. ' job that would expire', function()
      for _, kind in ipairs({ 'job', 'doc', 'stream' }) do redis.call('PERSIST', key(kind, id)) end
    end)
  end
end

local function check_ending(id, job)
  local last
  for event in string.gmatch(job.events or '', '%S+') do last = event end
  local reported = last and redis.call('HGET', key('event', last), 'run') == job.run
  if not job.quiet and not reported and now - (tonumber(job.finished_at) or 0) < tonumber(event_s) then
    report(id, 'event', 'its end has no event', function()
      local event = add_event(id, job, job.status, job.outcome)
      redis.call('HSET', key('job', id), 'events', (job.events and job.events .. ' ' or '') .. event)
    end)
  end
end

local function check_counters(id, job)
  local order, fence = whole_number(job.order, LARGEST_ORDER), whole_number(job.fence, LARGEST_FENCE)
  if order and order > (read_order() or 0) then
    report(id, 'counter', 'its order is above the counter', function() store_counter('order', order) end)
  end
  if fence and fence > (read_fence() or 0) then
    report(id, 'counter', 'its fence is above the counter', function() store_counter('fence', fence) end)
  end
end

for position = FIRST_ID, #ARGV do
  local id = ARGV[position]
  local job, quarantined = read_record(id), redis.call('ZSCORE', key('quarantine'), id)
  if job then
    local ended = job.status ~= 'queued' and job.status ~= 'processing'
    check_indexes(id, job, quarantined)
    check_lifetime(id, job, ended)
    check_counters(id, job)
    check_events_of(id, quarantined)
    if ended then check_ending(id, job) end
    if job.status == 'queued' and redis.call('EXISTS', key('doc', id)) == 0 then
      report(id, 'document', 'it is queued and its job document is gone')
    end
    if quarantined then
      report(id, 'quarantine', redis.call('HGET', key('quarantine_reasons'), id) or 'it was set aside')
    end
  else
    check_absent(id)
  end
end
return findings

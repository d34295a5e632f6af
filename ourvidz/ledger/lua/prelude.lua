-- Shared by every script, which is appended to this text.
-- ARGV: 1 key prefix, 2 the time ('' asks the server), 3 the newest record version this code knows,
-- from 4 on the verb's own arguments. Times are Unix seconds, an absent optional argument is ''.

local PREFIX, KNOWN = ARGV[1], tonumber(ARGV[3])
local MEMO_S, STREAM_ITEMS = 120, 500

local now
if ARGV[2] == '' then
  local time = redis.call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1000000
else
  now = tonumber(ARGV[2])
end

local function key(...) return PREFIX .. table.concat({ ... }, ':') end

local function stamp(seconds) return string.format('%.6f', seconds) end

-- Exact up to 2^53, so up to priority 8999 and a million million jobs.
local function rank(priority, order)
  return string.format('%.0f', tonumber(priority) * 1e12 + tonumber(order))
end

local function hash(name)
  local flat, fields = redis.call('HGETALL', name), {}
  if #flat == 0 then return nil end
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end

local function record(id)
  local job = hash(key('job', id))
  if job and tonumber(job.v) > KNOWN then error('RECORD-TOO-NEW ' .. job.v .. ' ' .. id) end
  return job
end

local function flat(id) return redis.call('HGETALL', key('job', id)) end

-- A call that is sent again because its reply was lost finds here what it did the first time.
local function said_before(token) return redis.call('GET', key('call', token)) end

local function say(token, answer)
  redis.call('SET', key('call', token), answer, 'EX', MEMO_S)
  return answer
end

local function count(name, by) redis.call('HINCRBY', key('counters'), name, by or 1) end

local function holds(job, run, fence)
  return job and job.status == 'processing' and job.run == run and job.fence == fence
end

-- The stream ----------------------------------------------------------------------------------------------

local function item(id, ...)
  return redis.call('XADD', key('stream', id), 'MAXLEN', '~', STREAM_ITEMS, '*', 'k', ...)
end

local function state_item(id, job, status, attempt)
  item(id, 'state', 'status', status, 'run', job.run, 'attempt', attempt, 'stage', job.stage or '')
end

-- The words of a queued job --------------------------------------------------------------------------------

local function wants_words(job, run)
  return job and job.status == 'queued' and job.run == run and job.enhancement == 'wanted'
end

local function stop_enhancing(id, job, wording)
  local name = key('job', id)
  redis.call('HSET', name, 'enhancement', 'over', 'wording', wording)
  redis.call('HDEL', name, 'enhancer', 'enhancing_until', 'stage')
  if job.stage then
    job.stage = nil
    state_item(id, job, 'queued', job.attempt)
  end
end

-- The outbox ----------------------------------------------------------------------------------------------

-- A job stands in `due` with the time at which its oldest row may be taken.
local function schedule(id)
  local head = redis.call('ZRANGE', key('rows', id), 0, 0)[1]
  if not head then return redis.call('ZREM', key('due'), id) end
  local times = redis.call('HMGET', key('event', head), 'due_at', 'lease_until')
  local due = math.max(tonumber(times[1]), tonumber(times[2] or 0))
  redis.call('ZADD', key('due'), stamp(due), id)
end

local function forget_event(event)
  for _, state in ipairs({ 'pending', 'delivered', 'dead' }) do
    redis.call('ZREM', key('letters', state), event)
  end
  redis.call('DEL', key('event', event))
end

-- Progress that has not gone out yet is old news once there is newer.
local function drop_progress(id)
  for _, event in ipairs(redis.call('ZRANGE', key('rows', id), 0, -1)) do
    local row = redis.call('HMGET', key('event', event), 'metadata', 'lease_until')
    if row[1] and tonumber(row[2] or 0) <= now then
      redis.call('ZREM', key('rows', id), event)
      forget_event(event)
    end
  end
end

-- Nil for a quiet job: nobody is to be told.
local function tell(id, job, kind, outcome, metadata)
  if job.quiet then return nil end
  drop_progress(id)
  local seq = redis.call('HINCRBY', key('job', id), 'seq', 1)
  local event = 'msg_' .. string.sub(redis.sha1hex(table.concat({ id, job.order, job.run, seq }, '\0')), 1, 32)
  local row = {
    'job', id, 'run', job.run, 'seq', seq, 'kind', kind, 'attempt', job.attempt, 'at', stamp(now),
    'queued_at', job.queued_at, 'facts', job.facts, 'state', 'pending', 'due_at', stamp(now),
    'deliveries', 0,
  }
  local optional = {
    claimed_at = job.claimed_at, worker = job.worker, callback_url = job.callback_url, outcome = outcome,
    metadata = metadata,
  }
  for name, value in pairs(optional) do
    row[#row + 1] = name
    row[#row + 1] = value
  end
  redis.call('HSET', key('event', event), unpack(row))
  redis.call('ZADD', key('rows', id), seq, event)
  redis.call('ZADD', key('letters', 'pending'), stamp(now), event)
  schedule(id)
  return event
end

-- Move a row out of `pending`; it stays in `state`, or is forgotten where that is nil.
local function settle(event, row, state, status)
  redis.call('ZREM', key('rows', row.job), event)
  redis.call('ZREM', key('letters', 'pending'), event)
  local name = key('event', event)
  if state then
    redis.call('ZADD', key('letters', state), stamp(now), event)
    redis.call('HSET', name, 'state', state, 'settled_at', stamp(now), 'last_status', status)
    redis.call('HDEL', name, 'lease_until', 'taken_by')
  else
    redis.call('DEL', name)
  end
  schedule(row.job)
end

-- The queue -----------------------------------------------------------------------------------------------

local function requeue(id, job, due)
  local name = key('job', id)
  redis.call('HSET', name, 'status', 'queued', 'due_at', stamp(due), 'progress', 0)
  redis.call('HINCRBY', name, 'fence', 1)
  redis.call('HDEL', name, 'worker', 'claimed_at', 'lease_until', 'token', 'step', 'stage', 'published_at')
  redis.call('ZREM', key('leases'), id)
  redis.call('ZADD', key('queued', job.queue), rank(job.priority, job.order), id)
  job.stage = nil
end

local function forget(id, job)
  for event in string.gmatch(job.events or '', '%S+') do forget_event(event) end
  for _, event in ipairs(redis.call('ZRANGE', key('rows', id), 0, -1)) do forget_event(event) end
  redis.call('DEL', key('job', id), key('doc', id), key('stream', id), key('rows', id))
  for _, name in ipairs({ 'index:all', 'finished', 'leases', 'due', 'documents' }) do
    redis.call('ZREM', key(name), id)
  end
  redis.call('ZREM', key('queued', job.queue), id)
  if job.user then redis.call('ZREM', key('index', 'user', job.user), id) end
end

-- Changes of a job that several scripts make.

-- Let the lease of a processed job end at a time.
local function set_lease(id, lease_until)
  redis.call('HSET', key('job', id), 'lease_until', lease_until)
  redis.call('ZADD', key('leases'), lease_until, id)
end

-- Whether a processed job's lease has ended by now: read and acted on in one script, or a renewal in between is lost.
local function lease_ended(job)
  return job.status == 'processing' and math.max(tonumber(job.lease_until or 0), leases_hold_until) <= now
end

-- Queue a processed job again, due at a time: a new fence, without worker, lease and stage, unpublished.
local function requeue(id, job, due)
  local name = key('job', id)
  redis.call('HSET', name, 'status', 'queued', 'fence', next_fence(job), 'due_at', timestamp(due), 'progress', 0)
  redis.call('HDEL', name, 'worker', 'claimed_at', 'lease_until', 'token', 'step', 'stage', 'published_at', 'shared')
  redis.call('ZREM', key('leases'), id)
  redis.call('ZADD', key('queued', job.queue), queue_score(job.priority, job.order), id)
  job.stage = nil
end

-- The entry of `attempt_folders` for a storage folder of the attempt with this token.
local function attempt_folder(id, token, folder) return table.concat({ id, token, folder }, ' ') end

-- Note where an attempt is going to store its files: if it dies, a keeper finds them. `ourvidz.storage.keys` makes the
-- same folder of bucket, user, job, fence and token.
local function track_files(id, job, fence, token)
  if not job.bucket or not job.user then return end
  local folder = table.concat({ job.bucket, job.user, id, '.attempts', fence .. '.' .. token }, '/')
  redis.call('ZADD', key('attempt_folders'), timestamp(now), attempt_folder(id, token, folder))
end

-- Delete a job with its document, stream, events and places in every index.
local function delete_job(id, job)
  raise_fences(job.fence)
  for event in string.gmatch(job.events or '', '%S+') do delete_event(event) end
  for _, event in ipairs(redis.call('ZRANGE', key('rows', id), 0, -1)) do delete_event(event) end
  redis.call('DEL', key('job', id), key('doc', id), key('stream', id), key('rows', id))
  for _, name in ipairs({ 'index:all', 'finished', 'leases', 'due', 'documents', 'deleting' }) do
    redis.call('ZREM', key(name), id)
  end
  redis.call('ZREM', key('queued', job.queue), id)
  for _, name in ipairs({ 'ended:failed', 'ended:cancelled' }) do redis.pcall('ZREM', key(name), id) end
  -- Unless a later job with the same result has it.
  if job.result and redis.pcall('GET', key('result', job.result)) == id then
    redis.call('DEL', key('result', job.result))
  end
  if job.user then redis.call('ZREM', key('index', 'user', job.user), id) end
end

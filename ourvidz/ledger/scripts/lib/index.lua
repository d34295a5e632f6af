-- The indexes that sweeps walk (`queued:<queue>`, `leases`, `finished`, `due`), as the records ask for them, and the
-- quarantine: jobs that this release cannot read are out of these indexes, for a newer release to put back.

-- Put a job into the index of its status, and take it out of the others.
local function index_job(id, job)
  local queued, leases, finished = key('queued', job.queue), key('leases'), key('finished')
  for _, name in ipairs({ queued, leases, finished }) do redis.call('ZREM', name, id) end
  if job.status == 'queued' then
    redis.call('ZADD', queued, queue_score(job.priority, job.order), id)
  elseif job.status == 'processing' then
    redis.call('ZADD', leases, job.lease_until or timestamp(now), id)
  else
    redis.call('ZADD', finished, job.finished_at or timestamp(now), id)
    -- It may have ended before what pages have taken over.
    redis.pcall('DEL', key('ended:until'))
  end
end

-- Take a job out of an index, and note why it is not handled.
local function quarantine_job(id, index, reason)
  redis.call('ZREM', key(index), id)
  redis.call('ZADD', key('quarantine'), timestamp(now), id)
  redis.call('HSET', key('quarantine_reasons'), id, reason)
end

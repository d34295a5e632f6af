-- Job records: one hash a job at `job:<id>`, its document at `doc:<id>`.

-- A hash as a table, nil when there is none.
local function read_hash(name)
  local flat, fields = redis.call('HGETALL', name), {}
  if #flat == 0 then return nil end
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end

-- The record of a job, nil when there is none. Raises RECORD-TOO-NEW for a record of a newer release.
local function read_record(id)
  local job = read_hash(key('job', id))
  if job and tonumber(job.v) > KNOWN_VERSION then error('RECORD-TOO-NEW ' .. job.v .. ' ' .. id) end
  return job
end

-- The version of a job document: it is the first field of its JSON.
local function version_of(document)
  return tonumber(string.match(string.sub(document, 1, 40), '^{"version":(%d+)') or 1)
end

-- The record as the flat list of names and values that the client reads.
local function flat_record(id) return redis.call('HGETALL', key('job', id)) end

-- Whether a record is in exactly this run, fence and claim. `token` is '' for a job that is not claimed. A failover
-- of the server may give two claims one run and fence: the token is what no other claim has.
local function is_current(job, run, fence, token)
  return job and job.run == run and job.fence == fence and (job.token or '') == token
end

-- Whether a record is being processed under exactly this claim.
local function holds_claim(job, run, fence, token)
  return is_current(job, run, fence, token) and job.status == 'processing'
end

-- The score of a job in `queued:<queue>`: priority before order. Exact up to 2^53, so up to priority 8999
-- and 10^12 jobs.
local function queue_score(priority, order)
  return string.format('%.0f', tonumber(priority) * 1e12 + tonumber(order))
end

-- Find jobs of an index by type and status, newest first. A job without a record passes: it is to leave the index.
-- Those of a status that few jobs have are looked for in the indexes of that status, all others in the index itself.
-- Arguments: index (its key without the prefix), below ('' or the order that all found ones are below), job_type, status
--   (each '' for any), queues (their names), scan (jobs that are looked at), limit (jobs that are found).
-- Keys: the index, job, queued, leases, finished, ended:failed, ended:cancelled, ended:until.
-- Returns: the number of jobs that were looked at; the order of the last one, '' at the end of the index; then id and
--   order of each that was found.
-- Events: none.
local index, below, job_type, status, queues, scan, limit = unpack(ARGV, 4)
scan, limit = tonumber(scan), tonumber(limit)
local top = below == '' and '+inf' or '(' .. below

-- The jobs of the index that are in some short indexes, with their orders as `ZREVRANGEBYSCORE` returns them; nil when there are
-- more than are looked at.
local function members_of(names)
  local rows = {}
  for _, name in ipairs(names) do
    local ids = redis.pcall('ZRANGE', key(name), 0, scan)
    if ids.err or #rows + #ids > scan then return nil end
    for _, id in ipairs(ids) do
      local order = redis.call('ZSCORE', key(index), id)
      if order and (below == '' or tonumber(order) < tonumber(below)) then rows[#rows + 1] = { id, order } end
    end
  end
  table.sort(rows, function(one, other) return tonumber(one[2]) > tonumber(other[2]) end)
  local entries = {}
  for _, row in ipairs(rows) do
    entries[#entries + 1] = row[1]
    entries[#entries + 1] = row[2]
  end
  return entries
end

-- The indexes of a status.
local function status_indexes()
  if status == 'processing' then return { 'leases' } end
  if status ~= 'queued' then return { 'finished' } end
  local names = {}
  for queue in string.gmatch(queues, '%S+') do names[#names + 1] = 'queued:' .. queue end
  return names
end

local source, entries, is_whole = key(index), nil, false
if status ~= '' then
  entries = members_of(status_indexes())
  is_whole = entries ~= nil
  if not entries and ENDED_WITHOUT_RESULT[status] and take_over_ended() then source = key('ended', status) end
end
local is_ended_index = source ~= key(index)
if not entries then
  entries = redis.pcall('ZREVRANGEBYSCORE', source, top, '-inf', 'WITHSCORES', 'LIMIT', 0, scan)
  if entries.err and is_ended_index then
    write_ended('ZCARD', source)
    source, is_ended_index = key(index), false
    entries = redis.call('ZREVRANGEBYSCORE', source, top, '-inf', 'WITHSCORES', 'LIMIT', 0, scan)
  end
end

-- Whether a job is in the result. What has left the index of its status is taken out.
local function passes(id)
  local job = redis.pcall('HMGET', key('job', id), 'type', 'status')
  if job.err then return false end
  if is_ended_index then
    if job[2] ~= status then write_ended('ZREM', source, id) end
    if not redis.call('ZSCORE', key(index), id) then return false end
  end
  return not job[1] or (job_type == '' or job[1] == job_type) and (status == '' or job[2] == status)
end

local found = {}
for i = 1, #entries, 2 do
  if passes(entries[i]) then
    found[#found + 1] = entries[i]
    found[#found + 1] = entries[i + 1]
    if #found >= 2 * limit then return { (i + 1) / 2, entries[i + 1], unpack(found) } end
  end
end
local ended = is_whole or #entries < 2 * scan
return { #entries / 2, ended and '' or entries[#entries], unpack(found) }

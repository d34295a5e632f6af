local id, run, fence, progress, stage, token, telling = unpack(ARGV, 4, 10)
local name = key('job', id)
local read = redis.call('HMGET', name, 'status', 'run', 'fence', 'progress', 'stage', 'cancel', 'step', 'preview')
local job = { status = read[1], run = read[2], fence = read[3] }
if not holds(job, run, fence) then return 'lost' end
local verdict = read[6] and 'cancel' or 'continue'
if read[7] == token then return verdict end

local at, doing = read[4], read[5] or ''
if progress ~= '' and tonumber(progress) > tonumber(at) then at = progress end
if stage ~= '' then doing = stage end
local moved = at ~= read[4] or doing ~= (read[5] or '')
local told, streamed = false, false
for i = 11, #ARGV, 2 do
  local kind, data = ARGV[i], ARGV[i + 1]
  if kind == 'progress' then
    item(id, kind, 'd', data, 'progress', at, 'stage', doing)
    told = true
  elseif kind == 'preview' then
    -- Pictures are large, and only the latest is of use: the one before makes room.
    if read[8] then redis.call('XDEL', key('stream', id), read[8]) end
    read[8] = item(id, kind, 'd', data)
    redis.call('HSET', name, 'preview', read[8])
  else
    item(id, kind, 'd', data)
    streamed = true
  end
end
if moved and not told then item(id, 'progress', 'progress', at, 'stage', doing) end
if telling ~= '' then tell(id, record(id), 'processing', nil, '{"progress":' .. at .. '}') end
if moved or telling ~= '' or #ARGV > 10 then
  redis.call('HSET', name, 'progress', at, 'stage', doing, 'step', token)
  if streamed then redis.call('HSET', name, 'streamed', 1) end
end
return verdict

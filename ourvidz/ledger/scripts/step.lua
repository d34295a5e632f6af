-- Record what a running attempt reports: progress (never backwards), stage, stream items, and the folders that it is
-- about to store files in.
-- Arguments: id, run, fence, token, progress, stage ('-' ends the stage), call, wants_event ('1' adds an event that carries the
--   progress), folders (their number), then each folder, then a kind and its JSON for every item.
-- Keys: job, stream, attempt_folders, and those of add_event.
-- Returns: 'continue', 'cancel' when the caller asked for it, or 'lost' when the claim is another one's.
-- Events: with wants_event `processing`; the items, and a `progress` item when something moved without one.
local id, run, fence, token, progress, stage, call, wants_event, folders = unpack(ARGV, 4, 12)
local FIRST_FOLDER = 13
local FIRST_ITEM = FIRST_FOLDER + tonumber(folders)

local name = key('job', id)
local read = redis.call('HMGET', name, 'status', 'run', 'fence', 'token', 'progress', 'stage', 'cancel', 'step', 'preview')
local job = { status = read[1], run = read[2], fence = read[3], token = read[4] }
if not holds_claim(job, run, fence, token) then return 'lost' end
local old_progress, old_stage, cancelled, last_call, preview = read[5], read[6] or '', read[7], read[8], read[9]
local verdict = cancelled and 'cancel' or 'continue'
if last_call == call then return verdict end
for i = FIRST_FOLDER, FIRST_ITEM - 1 do
  redis.call('ZADD', key('attempt_folders'), timestamp(now), attempt_folder(id, token, ARGV[i]))
end

local new_progress, new_stage = old_progress, old_stage
if progress ~= '' and tonumber(progress) > tonumber(old_progress) then new_progress = progress end
if stage == '-' then new_stage = '' elseif stage ~= '' then new_stage = stage end
local moved = new_progress ~= old_progress or new_stage ~= old_stage
local has_progress_item, streamed = false, false
for i = FIRST_ITEM, #ARGV, 2 do
  local kind, data = ARGV[i], ARGV[i + 1]
  if kind == 'progress' then
    add_item(id, kind, 'd', data, 'progress', new_progress, 'stage', new_stage)
    has_progress_item = true
  elseif kind == 'preview' then
    -- Images are large, and only the latest is of use: the one before makes room.
    if preview then redis.call('XDEL', key('stream', id), preview) end
    preview = add_item(id, kind, 'd', data)
    redis.call('HSET', name, 'preview', preview)
  else
    add_item(id, kind, 'd', data)
    streamed = true
  end
end
if moved and not has_progress_item then add_item(id, 'progress', 'progress', new_progress, 'stage', new_stage) end
if wants_event ~= '' then add_event(id, read_record(id), 'processing', nil, '{"progress":' .. new_progress .. '}') end
if moved or wants_event ~= '' or #ARGV >= FIRST_ITEM then
  redis.call('HSET', name, 'progress', new_progress, 'stage', new_stage, 'step', call)
  if streamed then redis.call('HSET', name, 'streamed', 1) end
end
return verdict

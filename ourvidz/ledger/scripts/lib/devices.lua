-- Device memory: who holds how much of it, and who waits for it.

-- The model of a part, without the worker that holds it: `wan` of `wan.transformer@host-gpu0`.
local function model_of(part) return part:match('^[^@.]+') end

local function read_residents(device)
  local rows = redis.call('HGETALL', key('residents', device))
  local residents = {}
  for i = 1, #rows, 2 do residents[rows[i]] = cjson.decode(rows[i + 1]) end
  return residents
end

local function write_resident(device, part, row) redis.call('HSET', key('residents', device), part, cjson.encode(row)) end

-- The waits whose owner has asked within its lease. The others are deleted: who waits asks again and again.
local function live_waits(device)
  local rows = redis.call('HGETALL', key('memory_waits', device))
  local waits = {}
  for i = 1, #rows, 2 do
    local wait = cjson.decode(rows[i + 1])
    if wait.lease_until < now then
      redis.call('HDEL', key('memory_waits', device), rows[i])
    else
      -- An empty table is an object for cjson.
      if wait.asks == cjson.null then wait.asks = {} end
      waits[rows[i]] = wait
    end
  end
  return waits
end

-- The counters that all jobs share: `order`, which numbers registrations and retries, and `fence`. A key that holds no
-- number of theirs (it is of another type, damaged or gone) counts as unknown: drawing goes on above what is known
-- otherwise, and stores a number again.

-- `queue_score` has no room for more.
local LARGEST_ORDER = 1e12 - 1
-- The microseconds of the latest time. Up to 2^53 there is room to count on.
local LARGEST_FENCE = LATEST_S * 1e6

-- The whole number in a text that is no larger than a limit, else nil.
local function whole_number(text, limit)
  local number = type(text) == 'string' and string.match(text, '^%d+$') and tonumber(text)
  return number and number <= limit and number or nil
end

local function read_order() return whole_number(redis.pcall('GET', key('order')), LARGEST_ORDER) end
local function read_fence() return whole_number(redis.pcall('GET', key('fence')), LARGEST_FENCE) end

-- `SET` replaces a key of any type.
local function store_counter(name, number)
  local text = string.format('%.0f', number)
  redis.call('SET', key(name), text)
  return text
end

-- Draw an order above all that were drawn before. Where the last one is unknown, above the listed jobs, and above the
-- hundredths of a second of the time, which grow faster than orders: those of deleted jobs do not come again either.
local function next_order()
  local last = read_order()
  if not last then
    local top = redis.pcall('ZREVRANGEBYSCORE', key('index:all'), LARGEST_ORDER, '-inf', 'WITHSCORES', 'LIMIT', 0, 1)
    last = math.max(tonumber(top[2] or nil) or 0, math.floor(now * 100))
  end
  return store_counter('order', last + 1)
end

-- Let the counter of fences be at least at the fence of a record. A damaged one says nothing.
local function raise_fences(fence)
  local number = whole_number(fence, LARGEST_FENCE) or 0
  if number > (read_fence() or 0) then store_counter('fence', number) end
end

-- Draw a fence above all that were drawn before, for any job: a job under the id of a deleted one gets no fence that
-- the deleted one had. It is at least the time in microseconds: a server that lost the last draws in a failover draws
-- none of them again, since its time has gone on.
local function next_fence(job)
  local last = math.max(read_fence() or 0, job and whole_number(job.fence, LARGEST_FENCE) or 0, math.floor(now * 1e6))
  return store_counter('fence', last + 1)
end

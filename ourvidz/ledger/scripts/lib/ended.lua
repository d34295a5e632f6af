-- The jobs that ended without a result, at `ended:failed` and `ended:cancelled`: sorted sets of job ids by their places
-- in `index:all`. Only pages read them, so no script that ends a job writes them: the first page after it takes over
-- what has come to `finished` since, from `ended:until` on. So they also contain jobs that another release ended. What
-- has left is taken out when a page finds it.

local ENDED_WITHOUT_RESULT = { failed = true, cancelled = true }
-- Jobs that one page takes over at most.
local TAKEN_OVER = 500

-- Write to the index. Returns whether that was possible: a server that takes no writes at the moment still has pages. What is
-- damaged is deleted, and taken over again.
local function write_ended(...)
  local answer = redis.pcall(...)
  local failed = type(answer) == 'table' and answer.err
  if failed and string.find(failed, 'WRONGTYPE', 1, true) then
    redis.pcall('DEL', key('ended:failed'), key('ended:cancelled'), key('ended:until'))
  end
  return not failed
end

-- Take over the jobs that have ended since the last page. Returns whether that is all of them.
local function take_over_ended()
  local past = redis.pcall('GET', key('ended:until'))
  past = type(past) == 'string' and seconds(past) or 0
  -- The ledger's time was lost, and has begun anew.
  if past > now then past = 0 end
  local rows = redis.call('ZRANGEBYSCORE', key('finished'), timestamp(past), '+inf', 'WITHSCORES', 'LIMIT', 0, TAKEN_OVER)
  for i = 1, #rows, 2 do
    local id = rows[i]
    local status = redis.pcall('HGET', key('job', id), 'status')
    local order = ENDED_WITHOUT_RESULT[status] and redis.call('ZSCORE', key('index:all'), id)
    if order and not write_ended('ZADD', key('ended', status), order, id) then return false end
  end
  local newest = seconds(rows[#rows])
  if newest and newest <= now and newest > past and not write_ended('SET', key('ended:until'), timestamp(newest)) then
    return false
  end
  return #rows < 2 * TAKEN_OVER
end

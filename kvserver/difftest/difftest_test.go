package difftest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

var (
	seeds     = flag.Int("seeds", 2, "how many pairs of servers get requests, one after the other")
	firstSeed = flag.Uint64("first-seed", 1, "seed of the first pair's requests, the others' follow; 0 draws one")
	requests  = flag.Int("requests", 3000, "how many requests are made, divided by the seeds")
	history   = flag.Int("history", 1500, "how many operations the history has whose hashes are compared")
	shrink    = flag.Duration("shrink", 0, "how long a failure may be shortened")
	verbose   = flag.Bool("steps", false, "print every step and etcd's answer")
)

// settleEvery bounds how much etcd may have to say to watchers, of which it
// buffers 1024 responses before it puts them together.
const settleEvery = 20

func drawSeed() uint64 {
	if *firstSeed != 0 {
		return *firstSeed
	}
	return rand.Uint64N(1 << 40) //nolint:gosec // printed, and short
}

// TestRandomRequests makes random requests of both servers.
func TestRandomRequests(t *testing.T) {
	first, each, total := drawSeed(), max(1, *requests / *seeds), 0
	for i := range *seeds {
		seed := first + uint64(i)
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Logf("replay with: go test ./kvserver/difftest -run TestRandomRequests -seeds 1 -first-seed %d -requests %d", seed, each)
			total += newRun(t, seed, everything).make(each)
		})
	}
	t.Logf("%d requests, seeds %d to %d", total, first, first+uint64(*seeds)-1)
}

// TestHashOfHistory writes a random history, with compactions, and compares
// HashKV's answers at random revisions of it.
func TestHashOfHistory(t *testing.T) {
	seed := drawSeed()
	t.Logf("replay with: go test ./kvserver/difftest -run TestHashOfHistory -first-seed %d -history %d", seed, *history)
	newRun(t, seed, writes).make(*history)
}

// run is one seed.
type run struct {
	t         *testing.T
	settings  settings
	generator *generator
	done      []step
	requests  int // of done
	counts    map[string]int
}

func newRun(t *testing.T, seed uint64, mix func(*generator) []weight) *run {
	return &run{t: t, settings: settings{jwt: seed%2 == 0}, generator: newGenerator(seed, mix), counts: map[string]int{}}
}

// make makes as many requests, and some to end with, and returns how many it
// were.
func (r *run) make(requests int) int {
	r.t.Helper()
	pair, err := startPair(r.t, r.settings)
	if err != nil {
		r.t.Fatal(err)
	}
	began := time.Now()
	for restarted := false; r.requests < requests && err == nil; {
		next := r.generator.next
		if !restarted && r.requests >= requests/2 && len(r.generator.queue) == 0 {
			restarted, next = true, otherRequests{r.generator}.restart
		}
		err = r.step(pair, next())
		if len(r.done)%settleEvery == 0 && err == nil {
			err = r.step(pair, settle{})
		}
	}
	for _, s := range r.generator.epilogue() {
		if err == nil {
			err = r.step(pair, s)
		}
	}
	took := time.Since(began)
	if err != nil {
		r.fail(err)
	}
	if err := pair.close(); err != nil {
		r.t.Error(err)
	}
	r.t.Logf("%d requests in %v, revision %d: %v", r.requests, took.Round(time.Millisecond), pair.revision, r.counts)
	return r.requests
}

func (r *run) step(p *pair, s step) error {
	r.done = append(r.done, s)
	etcds, err := s.run(context.Background(), p)
	if *verbose {
		r.t.Logf("%d %v\n  %v", len(r.done), s, etcds)
	}
	r.generator.heed(s, etcds)
	kind := fmt.Sprintf("%T", s)
	if c, ok := s.(call); ok {
		kind = strings.TrimPrefix(c.method, "etcdserverpb.")
	}
	kind = strings.TrimPrefix(kind, "difftest.")
	if s != (settle{}) {
		r.requests++
	}
	if etcds.code != 0 {
		kind += " refused"
	}
	r.counts[kind]++
	return err
}

// fail prints what led to the difference.
func (r *run) fail(err error) {
	r.t.Helper()
	const last = 15
	list := r.done
	if *shrink > 0 {
		list, err = shorten(r.t, r.settings, r.done, err, *shrink)
	}
	var b strings.Builder
	from := max(0, len(list)-last)
	if *shrink > 0 {
		from = max(0, len(list)-5*last)
	}
	for i, s := range list[from:] {
		fmt.Fprintf(&b, "%6d %v\n", from+i+1, s)
	}
	r.t.Errorf("step %d: %v\n%v\n\nthe last of %d steps (-shrink 1m tries to do with fewer):\n%s", len(r.done), list[len(list)-1], err, len(list), &b)
}

// errBroken is what a replay that does not work is ended by.
var errBroken = errors.New("the replay failed")

// replay returns the first step that is answered differently, and how.
func replay(t *testing.T, with settings, steps []step) (at int, err error) {
	pair, err := startPair(t, with)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errBroken, err)
	}
	defer func() {
		if closed := pair.close(); closed != nil {
			err = errors.Join(err, errBroken, closed)
		}
	}()
	for i, s := range steps {
		if _, err := s.run(t.Context(), pair); err != nil {
			return i, err
		}
	}
	return len(steps), nil
}

// shorten leaves steps out as long as what is left fails: first many at a
// time, then fewer. It returns how that fails.
func shorten(t *testing.T, with settings, steps []step, failure error, limit time.Duration) ([]step, error) {
	deadline := time.Now().Add(limit)
	for chunk := len(steps) / 2; chunk > 0; chunk /= 2 {
		for begin := len(steps) - 1 - chunk; begin > -chunk && len(steps) > 1; begin -= chunk {
			if time.Now().After(deadline) {
				return steps, failure
			}
			rest := append(append([]step{}, steps[:max(0, begin)]...), steps[min(len(steps)-1, begin+chunk):]...)
			if at, err := replay(t, with, rest); err != nil && !errors.Is(err, errBroken) {
				steps, failure = rest[:at+1], err
				begin = min(begin, len(steps)-1)
			}
		}
	}
	return steps, failure
}

// epilogue ends a run where everything can be looked at.
func (g *generator) epilogue() []step {
	var steps []step
	for _, alarm := range slices.Sorted(maps.Keys(g.alarms)) {
		steps = append(steps, g.clearing(alarm)...)
	}
	user := nobody
	if g.auth.enabled {
		user = root
		steps = append(steps, login{root, g.auth.passwords[root]})
	}
	all := &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}
	for revision := g.compacted; revision < g.revision; revision += max(1, (g.revision-g.compacted)/10) {
		if revision > g.compacted {
			steps = append(steps, call{user, "etcdserverpb.Maintenance.HashKV", &pb.HashKVRequest{Revision: revision}})
		}
	}
	return append(steps,
		call{user, "etcdserverpb.KV.Range", all},
		call{user, "etcdserverpb.Maintenance.HashKV", &pb.HashKVRequest{}},
		call{user, "etcdserverpb.KV.DeleteRange", &pb.DeleteRangeRequest{Key: all.Key, RangeEnd: all.RangeEnd, PrevKv: true}},
		call{user, "etcdserverpb.Lease.LeaseLeases", &pb.LeaseLeasesRequest{}},
		call{user, "etcdserverpb.Auth.UserList", &pb.AuthUserListRequest{}},
		call{user, "etcdserverpb.Auth.RoleList", &pb.AuthRoleListRequest{}},
		call{user, "etcdserverpb.Auth.AuthStatus", &pb.AuthStatusRequest{}},
		settle{},
		call{user, "etcdserverpb.Maintenance.HashKV", &pb.HashKVRequest{}},
	)
}

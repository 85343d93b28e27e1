package clustertest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

var quickReconnect = grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.2, MaxDelay: 100 * time.Millisecond},
	MinConnectTimeout: time.Second,
}

const (
	workersPerMember = 4
	registers        = 6
	// pace is the least time between two operations of one worker.
	pace             = 4 * time.Millisecond
	operationTimeout = 1500 * time.Millisecond
	// burstTimeout is longer than a pause, so that what is buffered to a
	// stopped member is answered after it resumes.
	burstTimeout = 8 * time.Second
	// perRound is how many operations have an outcome before the next fault.
	perRound = 200
)

// load is clients at work: every worker stays with one member.
type load struct {
	cluster *cluster
	history *history
	seed    uint64
	round   atomic.Int64
	seen    int // operations when the round began
	cancel  context.CancelFunc
	done    sync.WaitGroup
	ctx     context.Context
	workers int
}

func startLoad(c *cluster, seed uint64) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{cluster: c, history: newHistory(), seed: seed, cancel: cancel, ctx: ctx}
	for _, m := range c.members {
		l.attach(m)
	}
	return l
}

// attach puts more workers to work, with this member.
func (l *load) attach(m *member) {
	for range workersPerMember {
		kv := pb.NewKVClient(l.cluster.dial(m))
		id := uint64(l.workers) //nolint:gosec // a small number
		l.workers++
		l.done.Add(1)
		go func() {
			defer l.done.Done()
			l.work(l.ctx, kv, id)
		}()
	}
}

func (l *load) stop() *history {
	l.cancel()
	l.done.Wait()
	return l.history
}

// next begins a round once the present one has seen enough operations.
func (l *load) next(round int) {
	l.cluster.t.Helper()
	eventually(l.cluster.t, "the clients got on", func() error {
		if n := l.history.len() - l.seen; n < perRound {
			return fmt.Errorf("%d operations since the last fault", n)
		}
		return nil
	})
	l.seen = l.history.len()
	l.round.Store(int64(round))
}

// key is a register of the present round: fresh ones each round keep the
// histories short enough to check.
func (l *load) key(i int) string { return fmt.Sprintf("round-%03d/register-%d", l.round.Load(), i) }

// quietKey is a register that only the test itself writes.
func (l *load) quietKey(i int) string { return fmt.Sprintf("round-%03d/quiet-%d", l.round.Load(), i) }

func (l *load) work(ctx context.Context, kv pb.KVClient, id uint64) {
	random := rand.New(rand.NewPCG(l.seed, id))
	client := l.history.client()
	ticker := time.NewTicker(pace)
	defer ticker.Stop()
	for n := 0; ; n++ {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		switch key := l.key(random.IntN(registers)); random.IntN(4) {
		case 0, 1:
			l.read(ctx, kv, client, key, operationTimeout)
		case 2:
			value := fmt.Sprintf("w%d-%d", id, n)
			if l.write(ctx, kv, client, key, value) != nil {
				client = l.history.client()
			}
		case 3:
			l.writeUnique(ctx, kv, fmt.Sprintf("unique/w%d/%d", id, n), operationTimeout)
		}
	}
}

func (l *load) read(ctx context.Context, kv pb.KVClient, client int, key string, timeout time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	call := l.history.now()
	response, err := kv.Range(ctx, &pb.RangeRequest{Key: []byte(key)})
	if err != nil {
		l.history.readFailed()
		return
	}
	value := ""
	if len(response.GetKvs()) > 0 {
		value = string(response.GetKvs()[0].GetValue())
	}
	l.history.read(client, key, call, value)
}

func (l *load) write(ctx context.Context, kv pb.KVClient, client int, key, value string) error {
	ctx, cancel := context.WithTimeout(ctx, operationTimeout)
	defer cancel()
	call := l.history.now()
	_, err := kv.Put(ctx, &pb.PutRequest{Key: []byte(key), Value: []byte(value)})
	l.history.wrote(client, key, value, call, err == nil)
	return err
}

// crowd is connections to one member that are kept ready for a burst.
type crowd struct {
	load  *load
	conns []pb.KVClient
}

func (l *load) crowdAt(m *member, n int) *crowd {
	r := &crowd{load: l}
	for range n {
		conn := l.cluster.dial(m)
		conn.Connect()
		r.conns = append(r.conns, pb.NewKVClient(conn))
	}
	return r
}

// burst reads every quiet register and writes a unique key on every connection
// at once. The returned wait group is done when all have answered.
func (r *crowd) burst() *sync.WaitGroup {
	answered := &sync.WaitGroup{}
	round := r.load.round.Load()
	for n, kv := range r.conns {
		for i := range registers {
			answered.Add(2)
			go func() {
				defer answered.Done()
				r.load.read(context.Background(), kv, r.load.history.client(), r.load.quietKey(i), burstTimeout)
			}()
			go func() {
				defer answered.Done()
				r.load.writeUnique(context.Background(), kv, fmt.Sprintf("unique/burst-%d/%d-%d", round, n, i), burstTimeout)
			}()
		}
	}
	return answered
}

func (l *load) writeUnique(ctx context.Context, kv pb.KVClient, key string, timeout time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if _, err := kv.Put(ctx, &pb.PutRequest{Key: []byte(key), Value: []byte(key)}); err == nil {
		l.history.acknowledge(key, key)
	}
}

func createArtifact(name string) (*os.File, error) {
	return os.Create(filepath.Join(os.TempDir(), strings.ReplaceAll(name, "/", "-")))
}

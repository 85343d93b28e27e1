package difftest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/embed"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"muster/kvserver"
	"muster/kvserver/etcdsnap"
)

const (
	startTimeout = time.Minute
	// stepTimeout is far more than a request takes on a busy machine.
	stepTimeout = time.Minute
	// never is longer than any run: only progress that was asked for is compared.
	never = 100 * time.Hour
	// tokenTTL is longer than any run, in seconds: when a token expires is not
	// compared here.
	tokenTTL = 1 << 20
	// jwtOptions makes tokens that know the auth revision they are from.
	jwtOptions = "jwt,sign-method=HS256,ttl=100h,priv-key="
)

// side is one of the two servers, with what a client of it remembers.
type side struct {
	name    string
	conn    *grpc.ClientConn
	tokens  map[string]string // by user
	streams map[int]*transcript
}

// pair is etcd and musterd, both new and empty.
type pair struct {
	dir, token string
	etcd, ours *side
	watches    *watches
	revision   int64 // the latest that etcd has answered with
	// compactions has the revisions that were compacted, and compacting tells
	// whether history may still be being removed.
	compactions map[int64]bool
	compacting  bool
	restarts    int
	restarted   int64 // the revision that was compacted when the servers restarted

	mu      sync.Mutex
	closers []func() error
}

// settings are what both servers of a pair are started with.
type settings struct {
	jwt bool
}

func startPair(t testing.TB, with settings) (*pair, error) {
	dir, err := os.MkdirTemp(t.TempDir(), "")
	if err != nil {
		return nil, err
	}
	p := &pair{
		dir: dir, token: "simple", compactions: map[int64]bool{}, watches: newWatches(),
		etcd: newSide("etcd"), ours: newSide("ours"),
	}
	if with.jwt {
		key := filepath.Join(dir, "jwt.key")
		if err := os.WriteFile(key, []byte("a secret that both sides share"), 0o600); err != nil {
			return nil, err
		}
		p.token = jwtOptions + key
	}
	if err = p.start(); err == nil {
		err = p.watches.begin(p, nobody)
	}
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// start starts both servers with what they have in their directories.
func (p *pair) start() error {
	var judge, address string
	var group errgroup.Group // either takes an election
	group.Go(func() (err error) { judge, err = p.startEtcd(); return err })
	group.Go(func() (err error) { address, err = p.startOurs(); return err })
	err := group.Wait()
	if err == nil {
		err = p.connect(p.etcd, judge)
	}
	if err == nil {
		err = p.connect(p.ours, address)
	}
	return err
}

// stop stops what was started, the last first.
func (p *pair) stop() error {
	var errs []error
	for i := len(p.closers) - 1; i >= 0; i-- {
		errs = append(errs, p.closers[i]())
	}
	p.closers = nil
	return errors.Join(errs...)
}

func (p *pair) close() error { return errors.Join(p.stop(), os.RemoveAll(p.dir)) }

func (p *pair) onStop(do func() error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closers = append(p.closers, do)
}

func (p *pair) startEtcd() (address string, err error) {
	config := embed.NewConfig()
	config.Dir = filepath.Join(p.dir, "etcd")
	config.LogLevel, config.LogOutputs = "fatal", []string{"stderr"} // what ends the process
	config.UnsafeNoFsync = true
	config.BcryptCost, config.AuthToken, config.AuthTokenTTL = uint(bcrypt.MinCost), p.token, tokenTTL
	config.WatchProgressNotifyInterval = never
	anyPort := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	config.ListenClientUrls, config.AdvertiseClientUrls = anyPort, anyPort
	config.ListenPeerUrls, config.AdvertisePeerUrls = anyPort, anyPort
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	judge, err := embed.StartEtcd(config)
	if err != nil {
		return "", fmt.Errorf("start etcd: %w", err)
	}
	p.onStop(func() error { judge.Close(); return nil })
	select {
	case <-judge.Server.ReadyNotify():
	case <-time.After(startTimeout):
		return "", errors.New("etcd is not ready")
	}
	return judge.Clients[0].Addr().String(), awaitStorage(judge)
}

// awaitStorage waits until etcd has agreed with itself on a version and has
// migrated its storage, which both show in its status.
func awaitStorage(judge *embed.Etcd) error {
	for deadline := time.Now().Add(startTimeout); time.Now().Before(deadline); <-time.After(5 * time.Millisecond) {
		if now := judge.Server.StorageVersion(); now != nil && now.String() == etcdsnap.Version {
			return nil
		}
	}
	return errors.New("etcd has not migrated its storage")
}

func (p *pair) startOurs() (address string, err error) {
	config := kvserver.Default()
	config.DataDir, config.Logger = filepath.Join(p.dir, "ours"), slog.New(slog.NewTextHandler(io.Discard, nil))
	config.BcryptCost, config.AuthToken, config.AuthTokenTTL = bcrypt.MinCost, p.token, tokenTTL*time.Second
	config.WatchProgressNotifyInterval = never
	config.ListenPeerURLs = []string{"http://127.0.0.1:0"}
	config.ListenClientURLs = []string{"http://127.0.0.1:0"}
	server, err := kvserver.Start(config)
	if err != nil {
		return "", fmt.Errorf("start musterd: %w", err)
	}
	p.onStop(server.Close)
	select {
	case <-server.Ready():
	case <-time.After(startTimeout):
		return "", errors.New("musterd is not ready")
	}
	return server.ClientAddrs()[0].String(), nil
}

func newSide(name string) *side {
	return &side{name: name, tokens: map[string]string{}, streams: map[int]*transcript{}}
}

func (p *pair) connect(s *side, address string) error {
	const largest = 64 << 20
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(largest), grpc.MaxCallRecvMsgSize(largest)))
	if err != nil {
		return err
	}
	s.conn = conn
	p.onStop(func() error {
		for _, stream := range s.streams {
			stream.close()
		}
		clear(s.streams)
		return conn.Close()
	})
	return nil
}

// both has both sides do something at the same time.
func (p *pair) both(ctx context.Context, do func(ctx context.Context, s *side) answer) (want, got answer) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	done := make(chan answer, 1)
	go func() { done <- do(ctx, p.etcd) }()
	got = do(ctx, p.ours)
	want = <-done
	if response, ok := want.response.(interface{ GetHeader() *pb.ResponseHeader }); ok {
		p.revision = max(p.revision, response.GetHeader().GetRevision())
	}
	return want, got
}

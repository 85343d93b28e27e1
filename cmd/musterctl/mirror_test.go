package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

const patience = time.Minute

func dial(t *testing.T, endpoints ...string) *clientv3.Client {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: patience, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// contents are the keys below a prefix, which is left out, with their values.
func contents(ctx context.Context, t *testing.T, client *clientv3.Client, prefix string) map[string]string {
	t.Helper()
	response, err := client.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, kv := range response.Kvs {
		got[strings.TrimPrefix(string(kv.Key), prefix)] = string(kv.Value)
	}
	return got
}

// etcdctl make-mirror brings what is in one cluster into another, and goes on
// with what changes, from musterd to etcd and back.
func TestMakeMirror(t *testing.T) {
	t.Parallel()
	etcd, musterd := startEtcd(t, 1)[0], startMusterd(t, 1)[0]
	for name, way := range map[string]struct {
		from, to string
		flags    []string
	}{
		"musterd to etcd": {musterd, etcd, nil},
		"etcd to musterd": {etcd, musterd, nil},
		// All of the history, deletions included, in small transactions.
		"history of musterd": {musterd, etcd, []string{"--rev", "1", "--max-txn-ops", "7"}},
		"history of etcd":    {etcd, musterd, []string{"--rev", "1", "--max-txn-ops", "7"}},
	} {
		t.Run(name, func(t *testing.T) {
			if way.flags != nil && *etcdctl != "" {
				t.Skip("older ones do not have these flags")
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			from, to := dial(t, way.from), dial(t, way.to)
			const keys, perTxn = 1200, 100 // more than the page of a mirror has
			for i := 0; i < keys; i += perTxn {
				var puts []clientv3.Op
				for j := i; j < i+perTxn; j++ {
					puts = append(puts, clientv3.OpPut(fmt.Sprintf("source/%04d", j), fmt.Sprint(j)))
				}
				if _, err := from.Txn(ctx).Then(puts...).Commit(); err != nil {
					t.Fatal(err)
				}
			}
			stop := mirror(ctx, t, way.from, append([]string{"make-mirror", "--prefix", "source/", "--dest-prefix", "mirror/", way.to}, way.flags...)...)
			awaitSame(ctx, t, from, to)
			for i := range 100 {
				key := fmt.Sprintf("source/%04d", i)
				_, err := from.Txn(ctx).Then(clientv3.OpPut(key, "changed"), clientv3.OpDelete(key+"0"), clientv3.OpPut(fmt.Sprint("source/new", i), "")).Commit()
				if err != nil {
					t.Fatal(err)
				}
			}
			if _, err := from.Delete(ctx, "source/05", clientv3.WithPrefix()); err != nil {
				t.Fatal(err)
			}
			awaitSame(ctx, t, from, to)
			stop()
			for _, client := range []*clientv3.Client{from, to} {
				if _, err := client.Delete(ctx, "", clientv3.WithPrefix()); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// mirror runs etcdctl until it is stopped.
func mirror(ctx context.Context, t *testing.T, endpoint string, args ...string) (stop func()) {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if *etcdctl != "" {
		program = *etcdctl
	}
	var said strings.Builder
	process := exec.CommandContext(ctx, program)
	process.Args, process.Stdout, process.Stderr = append([]string{"etcdctl"}, args...), &said, &said
	process.Env = append(os.Environ(), "ETCDCTL_ENDPOINTS="+endpoint, "ETCDCTL_API=3")
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	return func() {
		_ = process.Process.Kill()
		if exit := (*exec.ExitError)(nil); !errors.As(process.Wait(), &exit) || exit.Exited() {
			t.Errorf("etcdctl %q has ended by itself: %s", args, said.String())
		}
	}
}

// awaitSame waits until "mirror/" in one is "source/" in the other.
func awaitSame(ctx context.Context, t *testing.T, from, to *clientv3.Client) {
	t.Helper()
	want := contents(ctx, t, from, "source/")
	for {
		diff := cmp.Diff(want, contents(ctx, t, to, "mirror/"))
		if diff == "" {
			return
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("the mirror differs (-source +mirror):\n%s", diff)
		}
	}
}

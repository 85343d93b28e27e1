package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"muster/kvserver"
	"muster/kvserver/tlsfiles"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestParse(t *testing.T) {
	for name, test := range map[string]struct {
		args, environment []string
		want              func(*kvserver.Config)
	}{
		"nothing": {want: func(*kvserver.Config) {}},
		"both spellings of a flag": {args: []string{"--name=a", "-data-dir", "/d"}, want: func(c *kvserver.Config) {
			c.Name, c.DataDir = "a", "/d"
		}},
		"lists": {args: []string{"--listen-client-urls=http://10.0.0.1:1,http://10.0.0.2:2 , "}, want: func(c *kvserver.Config) {
			c.ListenClientURLs = []string{"http://10.0.0.1:1", "http://10.0.0.2:2"}
		}},
		"milliseconds": {args: []string{"--heartbeat-interval=250", "--election-timeout=2500"}, want: func(c *kvserver.Config) {
			c.HeartbeatInterval, c.ElectionTimeout = 250*time.Millisecond, 2500*time.Millisecond
		}},
		"booleans and files": {args: []string{"--client-cert-auth", "--trusted-ca-file=ca", "--peer-client-cert-auth=true", "--peer-cert-file=pc"}, want: func(c *kvserver.Config) {
			c.ClientTLS = tlsfiles.Files{RequireClientCert: true, CA: "ca"}
			c.PeerTLS = tlsfiles.Files{RequireClientCert: true, Cert: "pc"}
		}},
		"numbers": {args: []string{"--max-txn-ops=5", "--max-request-bytes=6", "--max-concurrent-streams=7", "--snapshot-count=8"}, want: func(c *kvserver.Config) {
			c.MaxTxnOps, c.MaxRequestBytes, c.MaxConcurrentStreams, c.SnapshotCount = 5, 6, 7, 8
		}},
		"auth": {args: []string{"--auth-token=jwt,sign-method=HS256,priv-key=k", "--auth-token-ttl=60", "--bcrypt-cost=12"}, want: func(c *kvserver.Config) {
			c.AuthToken, c.AuthTokenTTL, c.BcryptCost = "jwt,sign-method=HS256,priv-key=k", time.Minute, 12
		}},
		"interval of progress": {args: []string{"--watch-progress-notify-interval=1m"}, want: func(c *kvserver.Config) {
			c.WatchProgressNotifyInterval = time.Minute
		}},
		"interval of progress, old spelling": {args: []string{"--experimental-watch-progress-notify-interval=5s"}, want: func(c *kvserver.Config) {
			c.WatchProgressNotifyInterval = 5 * time.Second
		}},
		"environment": {environment: []string{"ETCD_NAME=e", "ETCD_INITIAL_CLUSTER=e=http://h:1", "PATH=/bin", "ETCD_DATA_DIR="}, want: func(c *kvserver.Config) {
			c.Name, c.InitialCluster = "e", "e=http://h:1"
		}},
		"a flag outweighs the environment": {args: []string{"--name=f"}, environment: []string{"ETCD_NAME=e"}, want: func(c *kvserver.Config) {
			c.Name = "f"
		}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parse(test.args, test.environment, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			want := kvserver.Default()
			test.want(&want)
			if diff := cmp.Diff(want, got.config); diff != "" {
				t.Errorf("the configuration differs (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	for name, test := range map[string]struct {
		args, environment []string
		file              string
		want              string
	}{
		"near miss":            {args: []string{"--nmae=x"}, want: `unknown flag --nmae; did you mean --name?`},
		"far from everything":  {args: []string{"--zzz=x"}, want: `unknown flag --zzz; see --help`},
		"an argument":          {args: []string{"serve"}, want: `"serve" is not a flag; musterd takes only flags (see --help)`},
		"not a number":         {args: []string{"--election-timeout=1s"}, want: `invalid value "1s" for flag -election-timeout: write whole milliseconds`},
		"too many streams":     {args: []string{"--max-concurrent-streams=4294967296"}, want: `invalid value "4294967296" for flag -max-concurrent-streams: write a whole number below 2^32`},
		"environment":          {environment: []string{"ETCD_ELECTION_TIMEOUT=x"}, want: `environment variable ETCD_ELECTION_TIMEOUT="x": write whole milliseconds`},
		"unsupported":          {args: []string{"--wal-dir=/w"}, want: `invalid value "/w" for flag -wal-dir: not supported by this version: the log is kept in the data directory; leave --wal-dir out`},
		"unsupported, boolean": {args: []string{"--force-new-cluster"}, want: `invalid boolean flag force-new-cluster: not supported by this version: a cluster is not cut down to one member; leave --force-new-cluster out`},
		"no such file":         {args: []string{"--config-file=/no/such/file"}, want: `read --config-file: open /no/such/file: no such file or directory`},
		"file: not YAML":       {file: "name: [", want: `read --config-file FILE: yaml: line 1: did not find expected node content`},
		"file: a list":         {file: "- name", want: `FILE:1: a mapping of settings is needed`},
		"file: everything wrong at once": {file: "name: a\nnmae: b\nelection-timeout: soon\nclient-transport-security:\n  ca-fle: x\n  cert-file: {}\n", want: `FILE:2: unknown setting nmae; did you mean name?
FILE:3: election-timeout: write whole milliseconds
FILE:5: unknown setting ca-fle; see --help
FILE:6: cert-file: a single value or a list is needed`},
	} {
		t.Run(name, func(t *testing.T) {
			if test.file != "" {
				path := filepath.Join(t.TempDir(), "config.yaml")
				if err := os.WriteFile(path, []byte(test.file), 0o600); err != nil {
					t.Fatal(err)
				}
				test.args = []string{"--config-file", path}
				test.want = strings.ReplaceAll(test.want, "FILE", path)
			}
			_, err := parse(test.args, test.environment, io.Discard)
			if err == nil || err.Error() != test.want {
				t.Errorf("error\n%v\nwant\n%s", err, test.want)
			}
		})
	}
}

func TestUnknownEnvironmentIsOnlyAWarning(t *testing.T) {
	var warned bytes.Buffer
	if _, err := parse(nil, []string{"ETCD_UNSUPPORTED_ARCH=arm64"}, &warned); err != nil {
		t.Fatal(err)
	}
	if want := "warning: environment variable ETCD_UNSUPPORTED_ARCH names no flag of musterd; it is ignored\n"; warned.String() != want {
		t.Errorf("said %q, want %q", warned.String(), want)
	}
}

// As in etcd the file is all there is: flags and environment do not count.
func TestConfigFile(t *testing.T) {
	got, err := parse([]string{"--config-file=testdata/etcd.yaml", "--name=flag"}, []string{"ETCD_DATA_DIR=/environment"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	want := kvserver.Default()
	want.Name, want.DataDir, want.SnapshotCount = "infra0", "/var/lib/data", 10001
	want.HeartbeatInterval, want.ElectionTimeout = 200*time.Millisecond, 2*time.Second
	want.ListenPeerURLs = []string{"http://localhost:3380", "http://127.0.0.1:3381"}
	want.ListenClientURLs, want.AdvertiseClientURLs = []string{"http://localhost:3379"}, []string{"http://localhost:3379"}
	want.InitialAdvertisePeerURLs = []string{"http://localhost:3380"}
	want.InitialCluster, want.InitialClusterToken = "infra0=http://localhost:3380", "a-token"
	want.ClientTLS = tlsfiles.Files{Cert: "/pki/server.crt", Key: "/pki/server.key", CA: "/pki/ca.crt", RequireClientCert: true}
	want.PeerTLS = tlsfiles.Files{Cert: "/pki/peer.crt", Key: "/pki/peer.key", CA: "/pki/peer-ca.crt", RequireClientCert: true}
	if diff := cmp.Diff(want, got.config); diff != "" {
		t.Errorf("the configuration differs (-want +got):\n%s", diff)
	}
	if got.logLevel != "debug" {
		t.Errorf("log level %q", got.logLevel)
	}
	noted := strings.Join(got.notes, "\n")
	for _, name := range []string{"max-snapshots", "max-wals", "strict-reconfig-check", "enable-pprof", "logger", "log-outputs", "auto-compaction-mode"} {
		if !strings.Contains(noted, "--"+name+" is accepted but has no effect") {
			t.Errorf("nothing is said about --%s", name)
		}
	}
	if len(got.notes) != 7 {
		t.Errorf("%d notes, want 7:\n%s", len(got.notes), noted)
	}
}

func TestHelp(t *testing.T) {
	var out bytes.Buffer
	if err := run(context.Background(), []string{"--help"}, nil, &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/help.txt"
	if *update {
		if err := os.WriteFile(golden, out.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), out.String()); diff != "" {
		t.Errorf("--help differs (-want +got):\n%s", diff)
	}
}

// Every flag is found under some heading of --help.
func TestHelpNamesEveryFlag(t *testing.T) {
	set, groups := (&options{config: kvserver.Default()}).flags()
	grouped := map[string]int{}
	for _, g := range groups {
		for _, name := range g.names {
			grouped[name]++
		}
	}
	set.VisitAll(func(f *flag.Flag) {
		if grouped[f.Name] != 1 {
			t.Errorf("--%s is listed %d times", f.Name, grouped[f.Name])
		}
	})
}

// Tools look for this line in etcd's own form.
func TestVersion(t *testing.T) {
	var out bytes.Buffer
	if err := run(context.Background(), []string{"--version"}, nil, &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^etcd Version: 3\.7\.\d+\nGit SHA: .+\nGo Version: go.+\nGo OS/Arch: \w+/\w+\nmusterd Version: .+\n$`).MatchString(out.String()) {
		t.Errorf("--version prints\n%s", out.String())
	}
}

func TestExitCodes(t *testing.T) {
	err := run(context.Background(), []string{"--nmae"}, nil, io.Discard, io.Discard)
	if exitCode(err) != 2 {
		t.Errorf("a mistake on the command line exits with %d (%v)", exitCode(err), err)
	}
	err = run(context.Background(), []string{"--data-dir", t.TempDir(), "--initial-cluster-state=existing"}, nil, io.Discard, io.Discard)
	if err == nil || exitCode(err) != 1 {
		t.Errorf("a member that cannot start exits with %d (%v)", exitCode(err), err)
	}
	if !errors.As(usageError{io.EOF}, &usageError{}) || !errors.Is(usageError{io.EOF}, io.EOF) {
		t.Error("a usage error hides its cause")
	}
}

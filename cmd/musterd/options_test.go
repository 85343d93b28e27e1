package main

import (
	"bytes"
	"context"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/server/v3/embed"

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
		"lists": {args: []string{"--listen-peer-urls=http://10.0.0.2:2 , http://10.0.0.1:1,http://10.0.0.2:2", "--discovery-endpoints="}, want: func(c *kvserver.Config) {
			c.ListenPeerURLs = []string{"http://10.0.0.1:1", "http://10.0.0.2:2"}
		}},
		"an empty list of URLs is the default": {args: []string{"--listen-peer-urls="}, want: func(*kvserver.Config) {}},
		"milliseconds": {args: []string{"--heartbeat-interval=250", "--election-timeout=2500"}, want: func(c *kvserver.Config) {
			c.HeartbeatInterval, c.ElectionTimeout = 250*time.Millisecond, 2500*time.Millisecond
		}},
		"booleans and files": {args: []string{"--client-cert-auth", "--trusted-ca-file=ca", "--peer-client-cert-auth=true", "--peer-cert-file=pc"}, want: func(c *kvserver.Config) {
			c.ClientTLS = tlsfiles.Files{RequireClientCert: true, CA: "ca"}
			c.PeerTLS = tlsfiles.Files{RequireClientCert: true, Cert: "pc"}
		}},
		"numbers": {args: []string{"--max-txn-ops=5", "--max-request-bytes=6", "--max-concurrent-streams=0x7", "--snapshot-count=8", "--quota-backend-bytes=0"}, want: func(c *kvserver.Config) {
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
		"HTTP": {args: []string{"--enable-grpc-gateway=false", "--cors=https://b:2,http://a:1", "--host-whitelist=a,b", "--enable-pprof"}, want: func(c *kvserver.Config) {
			c.EnableGRPCGateway, c.EnablePprof = false, true
			c.CORS, c.HostWhitelist = []string{"http://a:1", "https://b:2"}, []string{"a", "b"}
		}},
		"no time is the default time": {args: []string{"--auth-token-ttl=0"}, want: func(*kvserver.Config) {}},
		"feature gates": {args: []string{"--feature-gates=InitialCorruptCheck=true,FastLeaseKeepAlive=false"}, want: func(c *kvserver.Config) {
			c.InitialCorruptCheck = true
		}},
		"what gates were before": {environment: []string{"ETCD_EXPERIMENTAL_INITIAL_CORRUPT_CHECK=true", "ETCD_EXPERIMENTAL_COMPACT_HASH_CHECK_ENABLED=true"}, want: func(c *kvserver.Config) {
			c.InitialCorruptCheck, c.CompactHashCheck = true, true
		}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parse(test.args, test.environment)
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
		"an argument":          {args: []string{"serve"}, want: `"serve" is not a valid flag; musterd takes only flags (see --help)`},
		"not milliseconds":     {args: []string{"--election-timeout=1s"}, want: `invalid value "1s" for flag -election-timeout: write whole milliseconds`},
		"not a duration":       {args: []string{"--corrupt-check-time=1"}, want: `invalid value "1" for flag -corrupt-check-time: write a duration with its unit, such as 300ms, 5s or 10m`},
		"not a boolean":        {args: []string{"--pre-vote=maybe"}, want: `invalid boolean value "maybe" for -pre-vote: write true or false`},
		"not a choice":         {args: []string{"--initial-cluster-state=old"}, want: `invalid value "old" for flag -initial-cluster-state: write new or existing`},
		"not a gate":           {args: []string{"--feature-gates=NoSuch=true"}, want: `invalid value "NoSuch=true" for flag -feature-gates: unrecognized feature gate: NoSuch`},
		"half a gate":          {args: []string{"--feature-gates=LeaseCheckpointPersist=true"}, want: `invalid value "LeaseCheckpointPersist=true" for flag -feature-gates: enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint`},
		"not a URL":            {args: []string{"--listen-peer-urls=localhost:1"}, want: `invalid value "localhost:1" for flag -listen-peer-urls: URL scheme must be http, https, unix, or unixs: localhost:1`},
		"too many streams":     {args: []string{"--max-concurrent-streams=4294967296"}, want: `invalid value "4294967296" for flag -max-concurrent-streams: write a whole number, 0 to 4294967295`},
		"below nothing":        {args: []string{"--max-txn-ops=-1"}, want: `invalid value "-1" for flag -max-txn-ops: write a whole number, 0 to 9223372036854775807`},
		"environment":          {environment: []string{"ETCD_ELECTION_TIMEOUT=x"}, want: `environment variable ETCD_ELECTION_TIMEOUT="x": write whole milliseconds`},
		"flag and environment": {args: []string{"--name=f"}, environment: []string{"ETCD_NAME=e"}, want: `environment variable ETCD_NAME and the flag --name are both given; unset the variable or leave the flag out`},
		"unsupported":          {args: []string{"--ca-file=/w"}, want: `invalid value "/w" for flag -ca-file: not supported by this version: etcd calls it --trusted-ca-file; leave --ca-file out`},
		"unsupported choice":   {args: []string{"--proxy=on"}, want: `invalid value "on" for flag -proxy: not supported by this version: musterd is not a proxy; leave --proxy out`},
		"not advertised":       {args: []string{"--listen-client-urls=http://127.0.0.1:1"}, want: `--advertise-client-urls is required when --listen-client-urls is set explicitly`},
		"no such file":         {args: []string{"--config-file=/no/such/file"}, want: `read --config-file: open /no/such/file: no such file or directory`},
		"file: not YAML":       {file: "name: [", want: `read --config-file FILE: yaml: line 1: did not find expected node content`},
		"file: a list":         {file: "- name", want: `FILE:1: a mapping of settings is needed`},
		"file: everything wrong at once": {file: "name: a\nnmae: b\nelection-timeout: soon\nclient-transport-security:\n  ca-fle: x\n  cert-file: {}\n", want: `FILE:2: unknown setting nmae; did you mean name?
FILE:3: election-timeout: write whole milliseconds
FILE:5: unknown setting ca-fle; did you mean ca-file?
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
			_, err := parse(test.args, test.environment)
			if err == nil || err.Error() != test.want {
				t.Errorf("error\n%v\nwant\n%s", err, test.want)
			}
		})
	}
}

func TestUnknownEnvironmentIsOnlyNoted(t *testing.T) {
	o, err := parse(nil, []string{"ETCD_UNSUPPORTED_ARCH=arm64", "ETCD_VERSION=3.5.0"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{
		"environment variable ETCD_UNSUPPORTED_ARCH names no flag of musterd; it is ignored",
		"environment variable ETCD_VERSION names no flag of musterd; it is ignored",
	}, o.notes); diff != "" {
		t.Errorf("notes differ (-want +got):\n%s", diff)
	}
	if o.version {
		t.Error("the environment asked for the version")
	}
}

// What is given and has no effect is said once.
func TestNotes(t *testing.T) {
	o, err := parse([]string{"--logger=zap", "--logger=zap", "--experimental-corrupt-check-time=0s", "--feature-gates=AllAlpha=true"}, []string{"ETCD_EXPERIMENTAL_ENABLE_V2V3=/v2"})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"--experimental-enable-v2v3 is accepted but has no effect: version 2 has keys of its own",
		"feature gate AllAlpha is accepted but has no effect",
	} {
		if n := strings.Count(strings.Join(o.notes, "\n"), want); n != 1 {
			t.Errorf("%q is said %d times:\n%s", want, n, strings.Join(o.notes, "\n"))
		}
	}
}

// etcd's own flags, those of this version and of the two before, are all here.
func TestEveryFlagOfEtcdIsKnown(t *testing.T) {
	ours := newOptions().flags()
	theirs := flag.NewFlagSet("etcd", flag.ContinueOnError)
	embed.NewConfig().AddFlags(theirs)
	names := []string{"config-file", "discovery-fallback", "initial-cluster-state", "v2-deprecation", "version"} // of etcdmain
	theirs.VisitAll(func(f *flag.Flag) { names = append(names, f.Name) })
	for _, file := range []string{"testdata/flags-3.5.21.txt", "testdata/flags-3.6.8.txt"} {
		list, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, strings.Fields(string(list))...)
	}
	if len(names) < 350 {
		t.Fatalf("only %d names to look for", len(names))
	}
	for _, name := range names {
		if ours.Lookup(name) == nil {
			t.Errorf("--%s is missing", name)
		}
	}
}

// Their defaults are etcd's, except where the difference is meant.
func TestDefaultsAreEtcds(t *testing.T) {
	different := map[string]string{
		"data-dir":                       "named after the member, in both",
		"initial-cluster":                "made from the name, in both",
		"feature-gates":                  "shown as they are given",
		"compaction-batch-limit":         "0 is 1000 in etcd",
		"compaction-sleep-interval":      "0 is 10ms in etcd",
		"backend-bbolt-freelist-type":    "the empty one is map in etcd",
		"watch-progress-notify-interval": "0 is 10m in etcd",
	}
	ours := newOptions().flags()
	theirs := flag.NewFlagSet("etcd", flag.ContinueOnError)
	embed.NewConfig().AddFlags(theirs)
	theirs.VisitAll(func(f *flag.Flag) {
		if got := ours.Lookup(f.Name); got != nil && got.DefValue != f.DefValue && different[f.Name] == "" {
			t.Errorf("--%s is %q by default, etcd's is %q", f.Name, got.DefValue, f.DefValue)
		}
	})
}

// As in etcd the file is all there is: flags and environment do not count.
func TestConfigFile(t *testing.T) {
	got, err := parse([]string{"--config-file=testdata/etcd.yaml", "--name=flag"}, []string{"ETCD_DATA_DIR=/environment"})
	if err != nil {
		t.Fatal(err)
	}
	want := kvserver.Default()
	want.TLSMaxVersion = "TLS1.3"
	want.Name, want.DataDir, want.SnapshotCount = "infra0", "/var/lib/data", 10001
	want.HeartbeatInterval, want.ElectionTimeout = 200*time.Millisecond, 2*time.Second
	want.ListenPeerURLs = []string{"http://127.0.0.1:3381", "http://localhost:3380"}
	want.ListenClientURLs, want.AdvertiseClientURLs = []string{"http://localhost:3379"}, []string{"http://localhost:3379"}
	want.InitialAdvertisePeerURLs = []string{"http://localhost:3380"}
	want.StrictReconfigCheck, want.EnablePprof = false, true
	want.InitialCluster, want.InitialClusterToken = "infra0=http://localhost:3380", "a-token"
	want.ClientTLS = tlsfiles.Files{Cert: "/pki/server.crt", Key: "/pki/server.key", CA: "/pki/ca.crt", RequireClientCert: true}
	want.PeerTLS = tlsfiles.Files{Cert: "/pki/peer.crt", Key: "/pki/peer.key", CA: "/pki/peer-ca.crt", RequireClientCert: true, AllowedCNs: []string{"m0", "m1"}, SkipAddressCheck: true}
	want.Discovery.Service.DialTimeout, want.Discovery.Service.Secure.InsecureTransport, want.Discovery.Service.Auth.Username = 3*time.Second, false, "root"
	want.WatchProgressNotifyInterval, want.GRPCKeepAliveInterval = 5*time.Minute, time.Hour
	if diff := cmp.Diff(want, got.config); diff != "" {
		t.Errorf("the configuration differs (-want +got):\n%s", diff)
	}
	for _, args := range [][]string{{"--debug"}, {"--log-level=DEBUG"}} {
		if o, err := parse(args, nil); err != nil || o.log.level != "debug" {
			t.Errorf("%s logs at %s (%v)", args, o.log.level, err)
		}
	}
	if got.log.level != "debug" {
		t.Errorf("log level %q", got.log.level)
	}
	noted := strings.Join(got.notes, "\n")
	for _, want := range []string{"the settings come from testdata/etcd.yaml", "--name is ignored: testdata/etcd.yaml has all the settings", "--max-snapshots is accepted but has no effect"} {
		if !strings.Contains(noted, want) {
			t.Errorf("nothing is said like %q:\n%s", want, noted)
		}
	}
	byVariable, err := parse(nil, []string{"ETCD_CONFIG_FILE=testdata/etcd.yaml", "ETCD_NAME=variable"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, byVariable.config); diff != "" {
		t.Errorf("named by the environment the file says something else (-want +got):\n%s", diff)
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

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/agext/levenshtein"
	"gopkg.in/yaml.v3"

	"muster/kvserver"
	"muster/kvserver/tlsfiles"
)

// options is the command line, the environment and the configuration file,
// read into one place.
type options struct {
	config     kvserver.Config
	version    bool
	configFile string
	logLevel   string
	logFormat  string
	// notes are said once in the log: flags that have no meaning here.
	notes []string
}

// group is a heading of --help and the flags below it.
type group struct {
	title string
	names []string
}

// parse reads flags first, then ETCD_* variables for what no flag set; a
// configuration file, as in etcd, replaces both.
func parse(args, environment []string, stderr io.Writer) (*options, error) {
	o := &options{config: kvserver.Default(), logLevel: "info", logFormat: "console"}
	flags, _ := o.flags()
	if err := flags.Parse(args); err != nil {
		return nil, explain(err, flags)
	}
	if extra := flags.Args(); len(extra) > 0 {
		return nil, fmt.Errorf("%q is not a flag; musterd takes only flags (see --help)", extra[0])
	}
	if err := fromEnvironment(flags, environment, stderr); err != nil {
		return nil, err
	}
	if o.configFile != "" {
		file := &options{config: kvserver.Default(), logLevel: "info", logFormat: "console", version: o.version}
		fileFlags, _ := file.flags()
		if err := fromFile(fileFlags, o.configFile); err != nil {
			return nil, err
		}
		return file, nil
	}
	return o, nil
}

// flags binds every flag to o. The groups are etcd's.
func (o *options) flags() (*flag.FlagSet, []group) {
	c := &o.config
	set := flag.NewFlagSet("musterd", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.Usage = func() {}

	set.StringVar(&c.Name, "name", c.Name, "human-readable name of this member")
	set.StringVar(&c.DataDir, "data-dir", c.DataDir, "data directory; ${name}.etcd when empty")
	set.Uint64Var(&c.SnapshotCount, "snapshot-count", c.SnapshotCount, "committed log entries after which the log is cut")
	millis(set, &c.HeartbeatInterval, "heartbeat-interval", "`milliseconds` between a leader's signs of life")
	millis(set, &c.ElectionTimeout, "election-timeout", "`milliseconds` without a sign of life before an election")
	urls(set, &c.ListenPeerURLs, "listen-peer-urls", "`urls` to listen on for other members")
	urls(set, &c.ListenClientURLs, "listen-client-urls", "`urls` to listen on for clients")
	urls(set, &c.ListenMetricsURLs, "listen-metrics-urls", "`urls` that serve health and metrics only")
	set.IntVar(&c.MaxTxnOps, "max-txn-ops", c.MaxTxnOps, "operations allowed in a transaction")
	set.IntVar(&c.MaxRequestBytes, "max-request-bytes", c.MaxRequestBytes, "largest accepted request, in bytes")
	set.Func("max-concurrent-streams", "requests under way on one client connection", func(text string) error {
		n, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return errors.New("write a whole number below 2^32")
		}
		c.MaxConcurrentStreams = uint32(n)
		return nil
	})

	set.DurationVar(&c.WatchProgressNotifyInterval, "watch-progress-notify-interval", c.WatchProgressNotifyInterval, "how often an idle watch tells its progress")
	set.DurationVar(&c.WatchProgressNotifyInterval, "experimental-watch-progress-notify-interval", c.WatchProgressNotifyInterval, "the same, as etcd 3.5 calls it")

	urls(set, &c.InitialAdvertisePeerURLs, "initial-advertise-peer-urls", "this member's peer `urls` as the others reach it")
	urls(set, &c.AdvertiseClientURLs, "advertise-client-urls", "this member's client `urls` as clients reach it")
	set.StringVar(&c.InitialCluster, "initial-cluster", c.InitialCluster, "founding members: name=peer-url,...")
	set.StringVar(&c.InitialClusterState, "initial-cluster-state", c.InitialClusterState, "new, or existing for a member that has its data")
	set.StringVar(&c.InitialClusterToken, "initial-cluster-token", c.InitialClusterToken, "distinguishes clusters with the same members")
	set.StringVar(&c.RestoreSnapshot, "restore-snapshot", c.RestoreSnapshot, "found the cluster from this `file`, a snapshot saved by etcdctl from etcd or musterd; the same on every member")

	certificates(set, &c.ClientTLS, "", "client")
	certificates(set, &c.PeerTLS, "peer-", "peer")
	set.StringVar(&c.AuthToken, "auth-token", c.AuthToken, "`kind` of the tokens of users: simple, or jwt,sign-method=RS256,pub-key=FILE,priv-key=FILE,ttl=10m")
	set.Func("auth-token-ttl", fmt.Sprintf("`seconds` for which a simple token is good without being used (default %d)", int(c.AuthTokenTTL.Seconds())), func(text string) error {
		n, err := strconv.ParseUint(text, 10, 31)
		if err != nil {
			return errors.New("write whole seconds")
		}
		if n > 0 { // as in etcd, 0 is the default
			c.AuthTokenTTL = time.Duration(n) * time.Second
		}
		return nil
	})
	set.IntVar(&c.BcryptCost, "bcrypt-cost", c.BcryptCost, "strength of the hashes of passwords, 4 to 31")

	set.StringVar(&o.logLevel, "log-level", o.logLevel, "debug, info, warn or error")
	set.StringVar(&o.logFormat, "log-format", o.logFormat, "console or json")
	for _, f := range withoutEffect {
		o.ignored(set, f)
	}
	for _, f := range unsupported {
		refused(set, f)
	}
	set.StringVar(&o.configFile, "config-file", o.configFile, "YAML `file` with these settings; flags and environment are ignored then")
	set.BoolVar(&o.version, "version", o.version, "print the version and exit")

	return set, []group{
		{"Member", []string{"name", "data-dir", "snapshot-count", "heartbeat-interval", "election-timeout", "listen-peer-urls", "listen-client-urls", "max-txn-ops", "max-request-bytes", "max-concurrent-streams", "watch-progress-notify-interval", "experimental-watch-progress-notify-interval"}},
		{"Clustering", []string{"initial-advertise-peer-urls", "initial-cluster", "initial-cluster-state", "initial-cluster-token", "advertise-client-urls", "restore-snapshot"}},
		{"Security", []string{"cert-file", "key-file", "client-cert-auth", "trusted-ca-file", "peer-cert-file", "peer-key-file", "peer-client-cert-auth", "peer-trusted-ca-file"}},
		{"Auth", []string{"auth-token", "auth-token-ttl", "bcrypt-cost"}},
		{"Monitoring", []string{"listen-metrics-urls"}},
		{"Logging", []string{"log-level", "log-format"}},
		{"Other", []string{"config-file", "version"}},
		{"Accepted for etcd's sake, without effect", names(withoutEffect)},
		{"Not in this version: accepted only as off", names(unsupported)},
	}
}

// etcdFlag is a flag of etcd's that does nothing here.
type etcdFlag struct {
	name, usage string
	boolean     bool     // may stand without a value
	off         []string // values that ask for nothing, besides the empty one
}

// withoutEffect are flags whose purpose is met in another way, or does not
// arise.
var withoutEffect = []etcdFlag{
	{name: "logger", usage: "the log goes through Go's slog"},
	{name: "log-outputs", usage: "the log goes to standard error"},
	{name: "enable-v2", usage: "the v2 API is not served", boolean: true},
	{name: "feature-gates", usage: "there are no feature gates"},
	{name: "max-snapshots", usage: "snapshots are not kept as files"},
	{name: "max-wals", usage: "the log is cut at every snapshot"},
	{name: "pre-vote", usage: "elections always begin with a pre-vote", boolean: true},
	{name: "strict-reconfig-check", usage: "members are not changed while running", boolean: true},
	{name: "enable-pprof", usage: "profiles are not served", boolean: true},
	{name: "auto-compaction-mode", usage: "there is no automatic compaction"},
}

// unsupported are flags that ask for something this version does not do.
// Accepting them in silence would be worse than refusing to start.
var unsupported = []etcdFlag{
	{name: "wal-dir", usage: "the log is kept in the data directory"},
	{name: "quota-backend-bytes", usage: "there is no quota", off: []string{"0"}},
	{name: "auto-compaction-retention", usage: "there is no automatic compaction", off: []string{"0", "0s"}},
	{name: "cors", usage: "there is no JSON gateway", off: []string{"*"}},
	{name: "discovery", usage: "members are named by --initial-cluster"},
	{name: "discovery-srv", usage: "members are named by --initial-cluster"},
	{name: "force-new-cluster", usage: "a cluster is not cut down to one member", boolean: true, off: []string{"false"}},
	{name: "auto-tls", usage: "certificates are not made at start", boolean: true, off: []string{"false"}},
	{name: "peer-auto-tls", usage: "certificates are not made at start", boolean: true, off: []string{"false"}},
	{name: "cipher-suites", usage: "Go's secure suites are used"},
	{name: "tls-min-version", usage: "TLS 1.2 is the oldest spoken", off: []string{"TLS1.2"}},
	{name: "tls-max-version", usage: "TLS 1.3 is the newest spoken", off: []string{"TLS1.3"}},
}

func names(flags []etcdFlag) []string {
	found := make([]string, len(flags))
	for i, f := range flags {
		found[i] = f.name
	}
	return found
}

func certificates(set *flag.FlagSet, files *tlsfiles.Files, prefix, role string) {
	set.StringVar(&files.Cert, prefix+"cert-file", "", role+" port: certificate `file`")
	set.StringVar(&files.Key, prefix+"key-file", "", role+" port: key `file`")
	set.BoolVar(&files.RequireClientCert, prefix+"client-cert-auth", false, role+" port: require a certificate signed by the trusted CA")
	set.StringVar(&files.CA, prefix+"trusted-ca-file", "", role+" port: CA bundle `file`")
}

func millis(set *flag.FlagSet, value *time.Duration, name, usage string) {
	usage = fmt.Sprintf("%s (default %d)", usage, value.Milliseconds())
	set.Func(name, usage, func(text string) error {
		n, err := strconv.ParseUint(text, 10, 31)
		if err != nil {
			return errors.New("write whole milliseconds")
		}
		*value = time.Duration(n) * time.Millisecond
		return nil
	})
}

func urls(set *flag.FlagSet, value *[]string, name, usage string) {
	if len(*value) > 0 {
		usage += " (default " + strings.Join(*value, ",") + ")"
	}
	set.Func(name, usage, func(text string) error {
		*value = nil
		for _, each := range strings.Split(text, ",") {
			if each = strings.TrimSpace(each); each != "" {
				*value = append(*value, each)
			}
		}
		return nil
	})
}

func (o *options) ignored(set *flag.FlagSet, f etcdFlag) {
	define(set, f, func(string) error {
		o.notes = append(o.notes, fmt.Sprintf("--%s is accepted but has no effect: %s", f.name, f.usage))
		return nil
	})
}

func refused(set *flag.FlagSet, f etcdFlag) {
	define(set, f, func(text string) error {
		if text == "" || slices.Contains(f.off, text) {
			return nil
		}
		return fmt.Errorf("not supported by this version: %s; leave --%s out", f.usage, f.name)
	})
}

func define(set *flag.FlagSet, f etcdFlag, accept func(string) error) {
	if f.boolean {
		set.BoolFunc(f.name, f.usage, accept)
		return
	}
	set.Func(f.name, f.usage, accept)
}

// explain adds the nearest known name to the complaint about an unknown flag.
func explain(err error, set *flag.FlagSet) error {
	const unknown = "flag provided but not defined: -"
	name, found := strings.CutPrefix(err.Error(), unknown)
	if !found {
		return err
	}
	return unknownName("flag --", name, set)
}

func unknownName(what, name string, set *flag.FlagSet) error {
	nearest, distance := "", len(name)/2+1
	set.VisitAll(func(f *flag.Flag) {
		if d := levenshtein.Distance(name, f.Name, nil); d < distance {
			nearest, distance = f.Name, d
		}
	})
	if nearest == "" {
		return fmt.Errorf("unknown %s%s; see --help", what, name)
	}
	return fmt.Errorf("unknown %s%s; did you mean %s%s?", what, name, what[strings.LastIndex(what, " ")+1:], nearest)
}

// fromEnvironment sets the flags that the command line left alone from
// ETCD_NAME and the like.
func fromEnvironment(set *flag.FlagSet, environment []string, stderr io.Writer) error {
	given := map[string]bool{}
	set.Visit(func(f *flag.Flag) { given[f.Name] = true })
	for _, pair := range environment {
		key, value, _ := strings.Cut(pair, "=")
		name, ours := strings.CutPrefix(key, "ETCD_")
		if !ours || value == "" {
			continue
		}
		name = strings.ReplaceAll(strings.ToLower(name), "_", "-")
		switch {
		case set.Lookup(name) == nil:
			fmt.Fprintf(stderr, "warning: environment variable %s names no flag of musterd; it is ignored\n", key)
		case !given[name]:
			if err := set.Set(name, value); err != nil {
				return fmt.Errorf("environment variable %s=%q: %w", key, value, err)
			}
		}
	}
	return nil
}

// securityKeys are the sections of etcd's configuration file, with the prefix
// of the flags below them.
var securityKeys = map[string]string{"client-transport-security": "", "peer-transport-security": "peer-"}

// fromFile sets flags from etcd's configuration file format.
func fromFile(set *flag.FlagSet, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read --config-file: %w", err)
	}
	var document yaml.Node
	if err := yaml.Unmarshal(data, &document); err != nil {
		return fmt.Errorf("read --config-file %s: %w", path, err)
	}
	if len(document.Content) == 0 {
		return nil
	}
	return fromMapping(set, path, "", document.Content[0])
}

func fromMapping(set *flag.FlagSet, path, prefix string, mapping *yaml.Node) error {
	if mapping.Kind != yaml.MappingNode {
		return fmt.Errorf("%s:%d: a mapping of settings is needed", path, mapping.Line)
	}
	var errs []error
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		key, value := mapping.Content[i], mapping.Content[i+1]
		section, isSection := securityKeys[key.Value]
		name := prefix + key.Value
		switch {
		case isSection && prefix == "":
			errs = append(errs, fromMapping(set, path, section, value))
		case set.Lookup(name) == nil:
			errs = append(errs, fmt.Errorf("%s:%d: %w", path, key.Line, unknownName("setting ", key.Value, set)))
		case value.Kind == yaml.ScalarNode:
			if err := set.Set(name, value.Value); err != nil {
				errs = append(errs, fmt.Errorf("%s:%d: %s: %w", path, value.Line, key.Value, err))
			}
		case value.Kind == yaml.SequenceNode:
			items := make([]string, len(value.Content))
			for j, item := range value.Content {
				items[j] = item.Value
			}
			if err := set.Set(name, strings.Join(items, ",")); err != nil {
				errs = append(errs, fmt.Errorf("%s:%d: %s: %w", path, value.Line, key.Value, err))
			}
		default:
			errs = append(errs, fmt.Errorf("%s:%d: %s: a single value or a list is needed", path, value.Line, key.Value))
		}
	}
	return errors.Join(errs...)
}

func (o *options) logger(w io.Writer) *slog.Logger {
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	level, known := levels[o.logLevel]
	if !known {
		o.notes = append(o.notes, fmt.Sprintf("--log-level %q is not known; using info", o.logLevel))
	}
	settings := &slog.HandlerOptions{Level: level}
	if o.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, settings))
	}
	return slog.New(slog.NewTextHandler(w, settings))
}

func printHelp(w io.Writer) {
	set, groups := (&options{config: kvserver.Default(), logLevel: "info", logFormat: "console"}).flags()
	fmt.Fprintln(w, "musterd: a replicated key-value server with etcd's API and flags")
	fmt.Fprintln(w, "\nEvery flag is also an environment variable: --data-dir is ETCD_DATA_DIR.")
	for _, g := range groups {
		fmt.Fprintf(w, "\n%s:\n", g.title)
		for _, name := range g.names {
			f := set.Lookup(name)
			kind, usage := flag.UnquoteUsage(f)
			left := "--" + name
			if kind != "" && kind != "value" && !slices.Contains([]string{"uint", "int", "string"}, kind) {
				left += " " + kind
			}
			if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" {
				usage += " (default " + f.DefValue + ")"
			}
			fmt.Fprintf(w, "  %-46s %s\n", left, usage)
		}
	}
}

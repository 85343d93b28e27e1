package ctlv2

import (
	"context"
	"fmt"

	"github.com/urfave/cli"
	"go.etcd.io/etcd/client/v2"
)

var ttlFlag = cli.IntFlag{Name: "ttl", Usage: "key time-to-live in seconds"}

// onKey is the action of a command that needs a key.
func (s *session) onKey(do func(*cli.Context, client.KeysAPI, string) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		keys, err := s.keys(c)
		if err != nil {
			return err
		}
		if c.NArg() == 0 {
			return s.badArgs(c, "key required")
		}
		return do(c, keys, c.Args().First())
	}
}

// request makes a request and says why it failed.
func (s *session) request(c *cli.Context, do func(context.Context) (*client.Response, error)) (*client.Response, error) {
	resp, err := bounded(s, c, do)
	if err != nil {
		return nil, s.failed(c, exitServerError, err)
	}
	return resp, nil
}

// requestAndPrint prints the answer, unless it is about a directory that nobody
// asked to see.
func (s *session) requestAndPrint(c *cli.Context, quietDirs bool, do func(context.Context) (*client.Response, error)) error {
	resp, err := s.request(c, do)
	if err != nil {
		return err
	}
	if quietDirs && resp.Node.Dir && c.GlobalString("output") == "simple" {
		return nil
	}
	return s.print(c, resp)
}

func (s *session) mkCommand() cli.Command {
	return cli.Command{
		Name: "mk", Usage: "make a new key with a given value", ArgsUsage: "<key> <value>",
		Flags: []cli.Flag{cli.BoolFlag{Name: "in-order", Usage: "create in-order key under directory <key>"}, ttlFlag},
		Action: s.onKey(func(c *cli.Context, keys client.KeysAPI, key string) error {
			value, err := s.value(c, 1)
			if err != nil {
				return err
			}
			return s.requestAndPrint(c, false, func(ctx context.Context) (*client.Response, error) {
				if c.Bool("in-order") {
					return keys.CreateInOrder(ctx, key, value, &client.CreateInOrderOptions{TTL: seconds(c.Int("ttl"))})
				}
				return keys.Set(ctx, key, value, &client.SetOptions{TTL: seconds(c.Int("ttl")), PrevExist: client.PrevNoExist})
			})
		}),
	}
}

func (s *session) setCommand() cli.Command {
	return cli.Command{
		Name: "set", Usage: "set the value of a key", ArgsUsage: "<key> <value>",
		Description: `Set sets the value of a key.

   When <value> begins with '-', <value> is interpreted as a flag.
   Insert '--' for workaround:

   $ set -- <key> <value>`,
		Flags: []cli.Flag{
			ttlFlag,
			cli.StringFlag{Name: "swap-with-value", Usage: "previous value"},
			cli.IntFlag{Name: "swap-with-index", Usage: "previous index"},
		},
		Action: s.onKey(func(c *cli.Context, keys client.KeysAPI, key string) error {
			value, err := s.value(c, 1)
			if err != nil {
				return err
			}
			return s.requestAndPrint(c, false, func(ctx context.Context) (*client.Response, error) {
				return keys.Set(ctx, key, value, &client.SetOptions{
					TTL: seconds(c.Int("ttl")), PrevIndex: unsigned(c, "swap-with-index"), PrevValue: c.String("swap-with-value"),
				})
			})
		}),
	}
}

func (s *session) updateCommand() cli.Command {
	return cli.Command{
		Name: "update", Usage: "update an existing key with a given value", ArgsUsage: "<key> <value>",
		Flags: []cli.Flag{ttlFlag},
		Action: s.onKey(func(c *cli.Context, keys client.KeysAPI, key string) error {
			value, err := s.value(c, 1)
			if err != nil {
				return err
			}
			return s.requestAndPrint(c, false, func(ctx context.Context) (*client.Response, error) {
				return keys.Set(ctx, key, value, &client.SetOptions{TTL: seconds(c.Int("ttl")), PrevExist: client.PrevExist})
			})
		}),
	}
}

// dirCommand makes a directory or gives it another TTL.
func (s *session) dirCommand(name, usage, args string, exist client.PrevExistType) cli.Command {
	return cli.Command{
		Name: name, Usage: usage, ArgsUsage: args, Flags: []cli.Flag{ttlFlag},
		Action: s.onKey(func(c *cli.Context, keys client.KeysAPI, key string) error {
			resp, err := s.request(c, func(ctx context.Context) (*client.Response, error) {
				return keys.Set(ctx, key, "", &client.SetOptions{TTL: seconds(c.Int("ttl")), Dir: true, PrevExist: exist})
			})
			if err != nil || c.GlobalString("output") == "simple" {
				return err
			}
			return s.print(c, resp)
		}),
	}
}

func (s *session) mkdirCommand() cli.Command {
	return s.dirCommand("mkdir", "make a new directory", "<key>", client.PrevNoExist)
}

func (s *session) setdirCommand() cli.Command {
	return s.dirCommand("setdir", "create a new directory or update an existing directory TTL", "<key>", client.PrevIgnore)
}

func (s *session) updatedirCommand() cli.Command {
	return s.dirCommand("updatedir", "update an existing directory", "<key> <value>", client.PrevExist)
}

func (s *session) rmCommand() cli.Command {
	return cli.Command{
		Name: "rm", Usage: "remove a key or a directory", ArgsUsage: "<key>",
		Flags: []cli.Flag{
			cli.BoolFlag{Name: "dir", Usage: "removes the key if it is an empty directory or a key-value pair"},
			cli.BoolFlag{Name: "recursive, r", Usage: "removes the key and all child keys(if it is a directory)"},
			cli.StringFlag{Name: "with-value", Usage: "previous value"},
			cli.IntFlag{Name: "with-index", Usage: "previous index"},
		},
		Action: s.onKey(func(c *cli.Context, keys client.KeysAPI, key string) error {
			return s.requestAndPrint(c, true, func(ctx context.Context) (*client.Response, error) {
				return keys.Delete(ctx, key, &client.DeleteOptions{
					PrevIndex: unsigned(c, "with-index"), PrevValue: c.String("with-value"), Dir: c.Bool("dir"), Recursive: c.Bool("recursive"),
				})
			})
		}),
	}
}

func (s *session) rmdirCommand() cli.Command {
	return cli.Command{
		Name: "rmdir", Usage: "removes the key if it is an empty directory or a key-value pair", ArgsUsage: "<key>",
		Action: s.onKey(func(c *cli.Context, keys client.KeysAPI, key string) error {
			return s.requestAndPrint(c, true, func(ctx context.Context) (*client.Response, error) {
				return keys.Delete(ctx, key, &client.DeleteOptions{Dir: true})
			})
		}),
	}
}

var (
	sortFlag   = cli.BoolFlag{Name: "sort", Usage: "returns result in sorted order"}
	quorumFlag = cli.BoolFlag{Name: "quorum, q", Usage: "require quorum for get request"}
)

func (s *session) getCommand() cli.Command {
	return cli.Command{
		Name: "get", Usage: "retrieve the value of a key", ArgsUsage: "<key>",
		Flags: []cli.Flag{sortFlag, quorumFlag},
		Action: s.onKey(func(c *cli.Context, keys client.KeysAPI, key string) error {
			resp, err := s.request(c, func(ctx context.Context) (*client.Response, error) {
				return keys.Get(ctx, key, &client.GetOptions{Sort: c.Bool("sort"), Quorum: c.Bool("quorum")})
			})
			if err != nil {
				return err
			}
			if resp.Node.Dir {
				return plain("%s: is a directory", resp.Node.Key)
			}
			return s.print(c, resp)
		}),
	}
}

func (s *session) lsCommand() cli.Command {
	return cli.Command{
		Name: "ls", Usage: "retrieve a directory", ArgsUsage: "[key]",
		Flags: []cli.Flag{
			sortFlag,
			cli.BoolFlag{Name: "recursive, r", Usage: "returns all key names recursively for the given path"},
			cli.BoolFlag{Name: "p", Usage: "append slash (/) to directories"},
			quorumFlag,
		},
		Action: func(c *cli.Context) error {
			keys, err := s.keys(c)
			if err != nil {
				return err
			}
			key := "/"
			if c.NArg() > 0 {
				key = c.Args().First()
			}
			resp, err := s.request(c, func(ctx context.Context) (*client.Response, error) {
				return keys.Get(ctx, key, &client.GetOptions{Sort: c.Bool("sort"), Recursive: c.Bool("recursive"), Quorum: c.Bool("quorum")})
			})
			if err != nil {
				return err
			}
			if c.GlobalString("output") != "simple" {
				return s.print(c, resp)
			}
			if !resp.Node.Dir {
				fmt.Fprintln(s.Out, resp.Node.Key)
			}
			s.list(resp.Node.Nodes, c.Bool("p"))
			return nil
		},
	}
}

// list prints the keys of nodes and of what is below them.
func (s *session) list(nodes client.Nodes, slash bool) {
	for _, n := range nodes {
		if n.Dir && slash {
			fmt.Fprintln(s.Out, n.Key+"/")
		} else {
			fmt.Fprintln(s.Out, n.Key)
		}
		s.list(n.Nodes, slash)
	}
}
